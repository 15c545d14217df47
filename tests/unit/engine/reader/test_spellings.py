"""Encoders as older libraries spelled them: scale, mask, activation and positions elsewhere."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.reading import largest_error, run_onnxruntime
from torch import Tensor, nn

from toolkit.engine import reference
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import InputError

pytestmark = pytest.mark.slow

B, T, H, N, V = 2, 6, 24, 3, 30


class OldEncoder(nn.Module):
    """Two layers whose every liberty is chosen by name."""

    def __init__(self, scale: str, mask: str, activation: str, order: str) -> None:
        super().__init__()
        self.scale, self.mask, self.activation, self.order = scale, mask, activation, order
        self.word, self.position = nn.Embedding(V, H), nn.Embedding(20, H)
        self.types = nn.Embedding(2, H)
        self.norm = nn.LayerNorm(H)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(H, H) for name in ("q", "k", "v", "o")}
                | {"up": nn.Linear(H, 40), "down": nn.Linear(40, H)}
                | {"norm1": nn.LayerNorm(H), "norm2": nn.LayerNorm(H)}
            )
            for _ in range(2)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        if self.order == "backwards":
            positions = positions.flip(1)
        table = self.position(positions) + self.types(torch.zeros_like(input_ids))
        x: Tensor = self.norm(table + self.word(input_ids))
        layer: Any
        for layer in self.layers:
            x = layer["norm1"](x + self.attend(layer, x, attention_mask))
            base = layer["norm1"](x) if self.order == "twice" else x
            x = layer["norm2"](layer["down"](self.act(layer["up"](x))) + base)
        return x

    def attend(self, layer: Any, x: Tensor, attention_mask: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], -1, N, H // N).permute(0, 2, 1, 3)

        q, k, v = heads(layer["q"](x)), heads(layer["k"](x)), heads(layer["v"](x))
        if self.order == "crossed":
            q, v = v, q
        root = math.sqrt(H // N)
        if self.scale == "divide query":
            q = q / root
        elif self.scale == "multiply both":
            q, k = q * root**-0.5, k * root**-0.5
        elif self.scale == "linear":
            q = heads(layer["q"](x) * (1 / root))
        scores = torch.matmul(q, k.transpose(-1, -2))
        if self.scale == "divide scores":
            scores = scores / root
        elif self.scale == "of shape":
            scores = scores / torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float32))
        column = attention_mask[:, None, None, :]
        if self.mask == "ten thousand":
            scores = scores + (1.0 - column.to(torch.float32)) * -10000.0
        elif self.mask == "lowest":
            scores = scores + (1.0 - column.float()) * torch.finfo(torch.float32).min
        elif self.mask == "fill":
            scores = scores.masked_fill((column == 0).expand_as(scores), -float("inf"))
        elif self.mask == "causal":
            order = torch.arange(x.shape[1])
            allowed = (order[:, None] >= order[None, :]).long() * column
            scores = scores.masked_fill(allowed == 0, -float("inf"))
        weights = torch.softmax(scores, dim=-1)
        if self.mask == "late":
            weights = weights * column
        context = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        if self.order == "heads last":
            context = context.transpose(2, 3).contiguous()
        out: Tensor = layer["o"](context.view(x.shape[0], -1, H))
        return out

    def act(self, x: Tensor) -> Tensor:
        if self.activation == "erf":
            return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
        if self.activation == "erf reversed":
            return x * (torch.erf(x * 0.7071067811865475) * 0.5 + 0.5)
        if self.activation == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
            return 0.5 * x * (1.0 + torch.tanh(inner))
        if self.activation == "quick":
            return x * torch.sigmoid(1.702 * x)
        return torch.clamp(x, min=0.0)


def export(path: Path, opset: int, *choices: str) -> None:
    torch.manual_seed(1)
    ids = torch.ones(B, T, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, yet in use
        torch.onnx.export(
            OldEncoder(*choices).eval(),
            (ids, ids),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=["hidden"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in (*names, "hidden")},
        )


GOOD = ("divide scores", "ten thousand", "erf", "plain")


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    "choices",
    [
        GOOD,
        ("divide query", "fill", "tanh", "plain"),
        ("multiply both", "lowest", "erf reversed", "plain"),
        ("linear", "ten thousand", "clamp", "plain"),
        ("of shape", "fill", "erf", "plain"),
    ],
    ids=" ".join,
)
def test_other_spellings_are_the_same_encoder(
    opset: int, choices: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export(path, opset, *choices)
    plan = read_graph(path)
    assert plan.inputs == ["input_ids", "attention_mask"]
    assert plan.embeddings.token_type is None  # its constant row is in the position table
    assert plan.layers[1].scale == pytest.approx((H // N) ** -0.5, rel=1e-6)
    rng = np.random.default_rng(0)
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [0, 0] + [1] * 7])
    inputs = {"input_ids": rng.integers(0, V, (3, 9)), "attention_mask": mask}
    expected = run_onnxruntime(path, inputs)
    assert largest_error(reference.run(plan, inputs), expected, mask) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: "backwards"}, r"rows chosen by input_ids, by token_type_ids or by position"),
        ({3: "crossed"}, r""),
        ({3: "twice"}, r"\(LayerNormalization\): expected an encoder layer of BERT's kind"),
        ({3: "heads last"}, r"\(MatMul\): expected attention's heads joined in their order"),
        ({1: "causal"}, r"expected attention that sees all tokens with attention_mask 1"),
        ({1: "none"}, r"expected attention that sees all tokens with attention_mask 1"),
        ({1: "late"}, r"\(Mul\): expected what BERT does with attention probabilities"),
        ({2: "quick"}, r"\(MatMul\): expected GELU, its tanh form or ReLU"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_encoders_are_refused(change: dict[int, str], message: str, tmp_path: Path) -> None:
    choices = [change.get(i, choice) for i, choice in enumerate(GOOD)]
    path = tmp_path / "model.onnx"
    export(path, 17, *choices)
    if change == {3: "crossed"}:  # the same function under other names: not refused
        assert len(read_graph(path).layers) == 2
        return
    with pytest.raises(InputError, match=message):
        read_graph(path)
