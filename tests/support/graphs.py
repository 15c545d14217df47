"""Small stock models with random parameters, exported by either of torch's exporters."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES = {
    "bert": "Bert",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
}
HEADS = {
    "base": "Model",
    "mlm": "ForMaskedLM",
    "qa": "ForQuestionAnswering",
    "seq": "ForSequenceClassification",
    "tok": "ForTokenClassification",
}
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
}
WIDTHS = [[3, 20], [1, 48]]  # heads and neurons of both layers after structured pruning
DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


@dataclass(frozen=True)
class Case:
    """What to export: `dynamo` or TorchScript, `fold` constants or not."""

    family: str = "bert"
    head: str = "base"
    attention: str = "eager"
    dynamo: bool = False
    opset: int = 17
    fold: bool = True
    activation: str = "gelu"
    heads: int = 4
    is_shrunk: bool = False  # to `WIDTHS`

    def __str__(self) -> str:
        exporter = "dynamo" if self.dynamo else "torchscript"
        fold = "fold" if self.fold else "nofold"
        parts = (self.family, self.head, self.attention, exporter, self.opset, fold)
        width = "shrunk" if self.is_shrunk else self.heads
        return "-".join(str(part) for part in (*parts, self.activation, width))


Export = Callable[[Case], Path]  # gives the ONNX file of a case


def make_model(case: Case) -> Any:
    """Build a model whose every parameter is random: a wrong bias or gamma then shows."""
    import torch
    import transformers

    values = {**SIZES, "num_attention_heads": case.heads, "hidden_act": case.activation}
    if case.family == "electra":
        values["embedding_size"] = 24
    if case.family in ("camembert", "roberta", "xlm-roberta"):
        values |= {"pad_token_id": 1, "type_vocab_size": 1}
    if case.family == "distilbert":
        values = {DISTILBERT_NAMES.get(name, name): value for name, value in values.items()}
    config = transformers.AutoConfig.for_model(case.family, **values)
    torch.manual_seed(0)
    model_class = getattr(transformers, CLASSES[case.family] + HEADS[case.head])
    model = model_class._from_config(config, attn_implementation=case.attention)
    if case.is_shrunk:
        from toolkit.compress.structured.widths import resize

        resize(model, WIDTHS)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    return model.eval()


def write_case(case: Case, path: Path) -> None:
    """Export a case."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters deprecate parts of themselves
        _write_case(case, path)


def _write_case(case: Case, path: Path) -> None:
    import torch

    for name in ("torch", "torch.__trace", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)  # or pytest keeps all they say
    model = make_model(case)
    names = ["input_ids", "attention_mask"]
    if case.family in ("bert", "electra"):
        names.append("token_type_ids")
    example = {name: torch.ones(2, 7, dtype=torch.long) for name in names}
    example["attention_mask"][1, 5:] = 0
    outputs = list(model(**example).keys())
    if case.dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=40)}
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=example,
            dynamo=True,
            opset_version=case.opset,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=dict.fromkeys(names, axes),
            external_data=False,
            optimize=case.fold,
            verbose=False,
        )
        return

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any) -> Any:
            return tuple(self.model(**dict(zip(names, args, strict=True))).values())

    dynamic = {name: {0: "batch", 1: "length"} for name in names}
    torch.onnx.export(
        Positional(),
        tuple(example.values()),
        path,
        dynamo=False,
        opset_version=case.opset,
        input_names=names,
        output_names=outputs,
        dynamic_axes=dynamic | {name: {0: "batch"} for name in outputs},
        do_constant_folding=case.fold,
    )
