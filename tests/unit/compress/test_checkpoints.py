"""Checkpoints of other tools: small ones of every layout are loaded, exported, timed, trained on.

Each is written the way its tool writes it; all hold the same model with the same zeros.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.configs import TINY, compose
from support.tiny import SMALL
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedModel

from toolkit.bench import bench
from toolkit.compress.model import folder_of, load_checkpoint, load_model, load_tokenizer
from toolkit.compress.sparsity.masks import prune_once
from toolkit.compress.sparsity.weights import prunable_weights, zero_share
from toolkit.config import default_sparsity
from toolkit.errors import InputError
from toolkit.export import export
from toolkit.record import read_record
from toolkit.tasks.demo import make_tokenizer
from toolkit.train import train

SPARSITY = 0.75
Weights = dict[str, torch.Tensor]
Layout = Callable[[Weights, dict[str, Any]], Weights]
VOCABULARY = sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1])


def plain(weights: Weights, config: dict[str, Any]) -> Weights:
    """Prune Once for All, oBERT in float: stock names."""
    return weights


def old_names(weights: Weights, config: dict[str, Any]) -> Weights:
    """PruneBERT: gamma and beta, no prefix, and the configuration of its training."""
    config |= {"model_type": "masked_bert", "architectures": ["MaskedBertForQuestionAnswering"]}
    config |= {"pruning_method": "topK", "mask_init": "constant", "mask_scale": 0.0}
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = {}
    for name, value in weights.items():
        for new, old in names.items():
            name = name.replace(new, old)
        found[name.removeprefix("bert.")] = value
    return found


def scores_left(weights: Weights, config: dict[str, Any]) -> Weights:
    """Movement pruning whose masks are in the weights already."""
    config["model_type"] = "masked_bert"
    scores = {
        name.replace("weight", "mask_scores"): (value != 0).float()
        for name, value in weights.items()
        if is_pruned(name)
    }
    return weights | scores


def masks_beside(weights: Weights, config: dict[str, Any]) -> Weights:
    """torch.nn.utils.prune: the weight as it was, and its mask."""
    found = {}
    for name, value in weights.items():
        if is_pruned(name):
            found[f"{name}_orig"] = torch.where(value == 0, 7.0, value)
            found[f"{name}_mask"] = (value != 0).float()
        else:
            found[name] = value
    return found


def fake_quantized(weights: Weights, config: dict[str, Any]) -> Weights:
    """SparseML and DeepSparse-ready ones with INT8: wrapped layers, observers everywhere."""
    found = {"bert.embeddings.word_embeddings.weight_fake_quant.scale": torch.ones(1)}
    for name, value in weights.items():
        if is_linear(name):
            layer, _, kind = name.rpartition(".")
            found[f"{layer}.module.{kind}"] = value
            observer = f"{layer}.quant.activation_post_process"
            found[f"{observer}.activation_post_process.min_val"] = torch.zeros(())
            found[f"{observer}.scale"] = torch.ones(1)
            found[f"{layer}.module.weight_fake_quant.zero_point"] = torch.zeros(1)
            found[f"{layer}.module.activation_post_process.fake_quant_enabled"] = torch.ones(1)
        else:
            found[name] = value
    attention = "bert.encoder.layer.0.attention.self.attention_scores_matmul"
    found[f"{attention}.input_quant_stubs.0.activation_post_process.scale"] = torch.ones(1)
    return found


def intel_quantized(weights: Weights, config: dict[str, Any]) -> Weights:
    """Prune Once for All with INT8: ranges beside plain names."""
    found = dict(weights)
    for name in filter(is_linear, weights):
        layer = name.rpartition(".")[0]
        for part in ("weight_fake_quant", "input_fake_quant", "output_fake_quant"):
            found[f"{layer}.{part}.scale"] = torch.ones(1)
        found[f"{layer}._step"] = torch.zeros(1)
        found[f"{layer}.fake_quant_enabled"] = torch.ones(1)
    return found


def bit_masks(weights: Weights, config: dict[str, Any]) -> Weights:
    """compressed-tensors, sparse-bitmask."""
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": "sparse-bitmask"},
    }
    found = {}
    for name, value in weights.items():
        if is_pruned(name):
            kept, layer = value != 0, name.removesuffix(".weight")
            bits = np.packbits(kept.numpy(), axis=-1, bitorder="little")
            counts = kept.sum(dim=-1)
            found[f"{layer}.compressed"] = value[kept]
            found[f"{layer}.bitmask"] = torch.from_numpy(bits)
            found[f"{layer}.shape"] = torch.tensor(value.shape)
            found[f"{layer}.row_offsets"] = torch.cumsum(counts, 0) - counts
        else:
            found[name] = value
    return found


def integers(weights: Weights, config: dict[str, Any]) -> Weights:
    """compressed-tensors, int-quantized: integers and a scale per output."""
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
    }
    found = {}
    for name, value in weights.items():
        if is_pruned(name):
            scale = value.abs().amax(dim=1, keepdim=True) / 127
            found[name] = torch.round(value / scale).to(torch.int8)
            found[f"{name}_scale"] = scale
            found[f"{name}_zero_point"] = torch.zeros_like(scale, dtype=torch.int8)
            found[name.replace("weight", "input_scale")] = torch.ones(1)
        else:
            found[name] = value
    return found


def nameless(weights: Weights, config: dict[str, Any]) -> Weights:
    """A configuration that names no class, with weights of DataParallel."""
    del config["architectures"]
    return {f"module.{name}": value for name, value in weights.items()}


def typeless(weights: Weights, config: dict[str, Any]) -> Weights:
    """A configuration older than `model_type`, and weights in half precision."""
    del config["model_type"]
    return {name: value.half() for name, value in weights.items()}


LAYOUTS: list[Layout] = [
    plain, old_names, scores_left, masks_beside, fake_quantized, intel_quantized, bit_masks,
    integers, nameless, typeless,
]  # fmt: skip


def is_linear(name: str) -> bool:
    return ".layer." in name and "LayerNorm" not in name


def is_pruned(name: str) -> bool:
    return is_linear(name) and name.endswith("weight")


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = SMALL | {"vocab_size": len(VOCABULARY)}
    model = BertForQuestionAnswering(
        BertConfig(architectures=["BertForQuestionAnswering"], **sizes)
    )
    pruned: PreTrainedModel = prune_once(model, default_sparsity(final_sparsity=SPARSITY)).eval()
    return pruned


def write(
    folder: Path, model: PreTrainedModel, layout: Layout = plain, is_pickled: bool = False
) -> Path:
    """Write a checkpoint in a layout, with a vocabulary and no tokenizer.json."""
    folder.mkdir(parents=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    weights = layout({name: value.clone() for name, value in model.state_dict().items()}, config)
    (folder / "config.json").write_text(json.dumps(config))
    if is_pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        contiguous = {name: value.contiguous() for name, value in weights.items()}
        save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in VOCABULARY))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_all_weights_arrive_with_their_zeros(
    tmp_path: Path, original: PreTrainedModel, layout: Layout, is_pickled: bool
) -> None:
    folder = write(tmp_path / "found", original, layout, is_pickled)
    local = compose("train", "model=local", f"model.path={folder}", "task=squad").model
    task = compose("train", "task=squad", "task.max_length=24").task
    for model in (
        load_checkpoint(folder),
        load_model(local, task, load_tokenizer(local), is_fine_tuned=True),
    ):
        assert type(model) is BertForQuestionAnswering
        assert zero_share(prunable_weights(model).values()) == zero_share(
            prunable_weights(original).values()
        )
        rounding = (
            0.02 if layout is integers else 1e-3 if layout is typeless else 0.0
        )  # relative to the largest
        for name, expected in original.state_dict().items():
            limit = rounding * float(expected.abs().max())
            assert float((model.state_dict()[name] - expected).abs().max()) <= limit, name


def test_what_is_left_out_is_said(
    tmp_path: Path, original: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    load_checkpoint(write(tmp_path / "a", original, fake_quantized))
    assert "the ranges of its fake quantization are left out" in capsys.readouterr().out
    load_checkpoint(write(tmp_path / "b", original, nameless))
    assert "by its weights it is a BertForQuestionAnswering" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("layout", [old_names, fake_quantized], ids=lambda layout: layout.__name__)
def test_exported_timed_and_trained_on(
    tmp_path: Path, original: PreTrainedModel, layout: Layout
) -> None:
    """The whole path: zeros as counted at first, in every record and at the end."""
    folder = write(tmp_path / "found", original, layout, is_pickled=True)
    zeros = zero_share(prunable_weights(original).values())
    exported = compose("export", f"checkpoint={folder}", "task.max_length=24", *TASK)
    onnx = export(replace_output(exported, tmp_path / "onnx"))
    facts = json.loads((onnx / "export.json").read_text())
    assert facts["zeros"]["encoder"] == pytest.approx(zeros)
    assert "texts of task=demo" in facts["parity"]["texts"]  # by the tokenizer of vocab.txt
    quick = ("batch_size=2", "seq_len=16", "seconds=0", "min_iterations=1", "engine.num_threads=1")
    measured = replace_output(compose("bench", f"onnx={onnx}", *quick), tmp_path / "bench")
    assert bench(measured)["model"]["sparsity"]["encoder"] == pytest.approx(zeros)
    args = ("model=local", f"model.path={folder}", "sparsity=locked", "task.max_length=24")
    own = [arg for arg in TINY if not arg.startswith("model.")]
    train(replace_output(compose("train", *args, *own), tmp_path / "run"))
    record = read_record(tmp_path / "run")
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(zeros)
    trained, before = load_checkpoint(tmp_path / "run" / "checkpoint"), original.state_dict()
    for name, weight in prunable_weights(trained).items():
        assert torch.equal(weight == 0, before[name] == 0)
        assert not torch.equal(weight, before[name])


TASK = ("task.max_eval_samples=4", "engine.num_threads=1")


def replace_output(config: Any, folder: Path) -> Any:
    config.output_dir = str(folder)
    return config


@pytest.mark.slow
def test_a_hub_id_is_exported_from_the_cache(
    tmp_path: Path, original: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "models--some-one--small-bert"
    write(cache / "snapshots" / "abc", original, fake_quantized)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in (
        "huggingface_hub.constants.HF_HUB_CACHE",
        "transformers.utils.hub.constants.HF_HUB_CACHE",
    ):
        monkeypatch.setattr(place, str(cache.parent))
    config = compose("export", "checkpoint=some-one/small-bert", "task.max_length=24", *TASK)
    onnx = export(replace_output(config, tmp_path / "onnx"))
    assert folder_of("some-one/small-bert") == cache / "snapshots" / "abc"
    record = read_record(onnx)
    assert record["model"]["name"] == "small-bert"
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(SPARSITY, abs=1e-3)
    assert (onnx / "tokenizer.json").is_file()


def test_removed_heads_become_narrower_layers(tmp_path: Path, original: PreTrainedModel) -> None:
    """nn_pruning, and `prune_heads` of transformers 4: their number stands in config.json."""

    def without_a_head(weights: Weights, config: dict[str, Any]) -> Weights:
        config["pruned_heads"] = {"1": [0]}
        attention = "bert.encoder.layer.1.attention"
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                name = f"{attention}.self.{part}.{kind}"
                weights[name] = weights[name][8:]
        name = f"{attention}.output.dense.weight"
        weights[name] = weights[name][:, 8:]
        return weights

    model = load_checkpoint(write(tmp_path / "found", original, without_a_head))
    assert model.config.layer_widths == [[2, 32], [1, 32]]
    expected = original.state_dict()["bert.encoder.layer.1.attention.self.query.weight"][8:]
    found = model.state_dict()["bert.encoder.layer.1.attention.self.query.weight"]
    assert torch.equal(found, expected)


def unapplied(weights: Weights, config: dict[str, Any]) -> Weights:
    found = scores_left(weights, config)
    return {n: v + 1 if is_pruned(n) else v for n, v in found.items()}


def packed(weights: Weights, config: dict[str, Any]) -> Weights:
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    name = next(filter(is_pruned, weights))
    return weights | {f"{name}_packed": weights.pop(name)}


def shifted(weights: Weights, config: dict[str, Any]) -> Weights:
    found = integers(weights, config)
    return {n: v + 1 if n.endswith("zero_point") else v for n, v in found.items()}


def other_method(weights: Weights, config: dict[str, Any]) -> Weights:
    config["quantization_config"] = {"quant_method": "gptq"}
    return weights


def no_norm(weights: Weights, config: dict[str, Any]) -> Weights:
    config["layer_norm_type"] = "no_norm"
    return weights


def other_head(weights: Weights, config: dict[str, Any]) -> Weights:
    return {n.replace("qa_outputs", "prediction_heads.0.layer"): v for n, v in weights.items()}


def other_head_unnamed(weights: Weights, config: dict[str, Any]) -> Weights:
    del config["architectures"]
    return other_head(weights, config)


def unknown_class(weights: Weights, config: dict[str, Any]) -> Weights:
    config["architectures"] = ["FastBert"]
    return weights


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (unapplied, r"mask_scores is there, but its mask has not been .* docs/checkpoints\.md"),
        (packed, r"weight_packed is packed for another engine"),
        (shifted, r"weight_zero_point is not 0, so its zeros would be lost"),
        (other_method, r"was quantized by 'gptq'.* name the checkpoint it was made from"),
        (no_norm, r"layer_norm_type='no_norm'.*take one of them without 'opt'"),
        (other_head, r"lacks 2 weights .* qa_outputs\.bias, and has others, such as prediction_"),
        (other_head_unnamed, r'no head that is known: write it there, such as "architectures"'),
        (unknown_class, r"'FastBert'.*such as BertForSequenceClassification"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_others_are_refused_by_name(
    tmp_path: Path, original: PreTrainedModel, layout: Layout, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_checkpoint(write(tmp_path / "found", original, layout))
    assert "\n" not in str(caught.value)


def test_no_code_of_a_file_is_run(tmp_path: Path, original: PreTrainedModel) -> None:
    folder = write(tmp_path / "found", original, is_pickled=True)

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"weight": Touch()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="may run code when they are read") as caught:
        load_checkpoint(folder)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_folders_that_hold_a_checkpoint_elsewhere(
    tmp_path: Path, original: PreTrainedModel
) -> None:
    write(tmp_path / "zoo" / "training", original)
    with pytest.raises(InputError, match=r"no config\.json: name its folder training"):
        load_checkpoint(tmp_path / "zoo")
    folder = write(tmp_path / "found", original)
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(InputError, match="weights of TensorFlow or Flax"):
        load_checkpoint(folder)


def test_a_folder_without_a_tokenizer(tmp_path: Path, original: PreTrainedModel) -> None:
    """transformers would make one of five words."""
    folder = write(tmp_path / "found", original)
    (folder / "vocab.txt").unlink()
    local = compose("train", "model=local", f"model.path={folder}").model
    with pytest.raises(InputError, match=r"has no tokenizer \(tokenizer\.json or vocab\.txt\)"):
        load_tokenizer(local)
