"""Checkpoints as other tools left them: their configuration and weights, as transformers has them.

Weights go by the names of their file. What a training by fake quantization or movement pruning
leaves beside the weights is dropped, what stands for a weight is computed, and nothing is guessed:
what cannot be told from the file is refused (docs/checkpoints.md).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from toolkit.errors import InputError

Weights = Mapping[str, torch.Tensor]

# Observers and rounding of torch's, SparseML's and Intel's quantization-aware training.
ROUNDING = re.compile(
    r"(fake_quant|activation_post_process|_quant_stubs|\.quant\.|\.dequant\.|\._step$)"
)
SCORES = "mask_scores"  # of movement pruning
BITMASK = ("compressed", "bitmask", "shape", "row_offsets")  # of compressed-tensors
SCALES = ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point")  # likewise
# A weight before its mask, by torch.nn.utils.prune and by Intel's package.
MASKED = ("weight_orig", "weight_original")
PACKED = re.compile(r"\.(weight_packed|_packed_params(\._packed_params|\.dtype)?)$")
ODD = re.compile(
    rf"{ROUNDING.pattern}|{SCORES}|\.module\.|^module\.|{PACKED.pattern}"
    rf"|\.({'|'.join((*BITMASK, *SCALES, *MASKED, 'weight_mask'))})$"
)
MASKED_BERT = "masked_bert"  # model_type while movement pruning, which its results often keep
APPLIED = 0.005  # zeros of a weight whose mask has been multiplied into it, at least


def plain_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says in the words of transformers.

    Args:
        values: The file.

    Raises:
        InputError: It describes a model that computes something else: the reason.
    """
    values = dict(values)
    if values.get("layer_norm_type", "layer_norm") != "layer_norm":
        raise InputError(
            f"it has layer_norm_type={values['layer_norm_type']!r}, of nn_pruning's models without "
            "LayerNorm, which transformers would run with one: take one of them without 'opt' in "
            "its name"
        )
    quantized = values.get("quantization_config") or {}
    method = quantized.get("quant_method", "compressed-tensors")
    if method != "compressed-tensors":
        raise InputError(
            f"it was quantized by {method!r}, and cannot be pruned or trained on: name the "
            "checkpoint it was made from"
        )
    for name in ("quantization_config", "compression_config", "sparsity_config"):
        values.pop(name, None)
    names = [name.removeprefix("Masked") for name in values.get("architectures") or []]
    if names:
        values["architectures"] = names
    if values.get("model_type") == MASKED_BERT:
        values["model_type"] = "bert"
    if "model_type" not in values and names:  # as before transformers 2.2
        values["model_type"] = getattr(transformers, names[0]).config_class.model_type
    removed = values.pop("pruned_heads", None)
    if removed and "layer_widths" not in values:
        stock = ("num_hidden_layers", "num_attention_heads", "intermediate_size")
        names_of = {"distilbert": ("n_layers", "n_heads", "hidden_dim")}
        layers, heads, neurons = (
            values[name] for name in names_of.get(values["model_type"], stock)
        )
        values["layer_widths"] = [
            [heads - len(removed.get(str(i), [])), neurons] for i in range(layers)
        ]
    return values


def is_odd(names: Iterable[str]) -> bool:
    """Tell whether names of a file are of those that `plain_weights` knows."""
    return any(ODD.search(name) for name in names)


def plain_weights(weights: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return weights as transformers names them, and sentences on what was left out or computed.

    Args:
        weights: All of a file, by name.

    Raises:
        InputError: They cannot be told from the file: the reason.
    """
    if packed := next(filter(PACKED.search, weights), None):
        raise InputError(
            f"{packed} is packed for another engine: name the checkpoint in float that it was "
            "made from, or decompress it with the tool that wrote it"
        )
    notes, found = [], {}
    for name, value in weights.items():
        found[name.removeprefix("module.")] = value
    for name in [name for name in found if ROUNDING.search(name)]:
        del found[name]
        notes.append("the ranges of its fake quantization are left out (quantization=int8 of "
                     "export finds new ones)")  # fmt: skip
    # torch's QuantWrapper has the layer in `module`
    found = {name.replace(".module.", "."): value for name, value in found.items()}
    notes += _apply_scores(found)
    notes += _apply_masks(found)
    notes += _decompress(found)
    return found, list(dict.fromkeys(notes))


def architecture_of(names: Iterable[str], model_type: str) -> str | None:
    """Name the class of a model by its weights, where config.json does not.

    Returns:
        None where no head is known by such names.
    """
    known = {name.rpartition(".")[0] for name in names}
    heads = {
        "qa_outputs": "ForQuestionAnswering",
        "classifier.out_proj": "ForSequenceClassification",
        "pre_classifier": "ForSequenceClassification",
        "cls.predictions.transform.dense": "ForMaskedLM",
        "lm_head.dense": "ForMaskedLM",
        "vocab_transform": "ForMaskedLM",
        "generator_predictions.dense": "ForMaskedLM",
    }
    head = next((head for name, head in heads.items() if name in known), None)
    if head is None and "classifier" in known:
        has_pooler = any("pooler" in name for name in known)
        head = "ForSequenceClassification" if has_pooler else "ForTokenClassification"
    has_head = head is not None or any(not _is_body(name) for name in known)
    if head is None and has_head:
        return None
    config = transformers.CONFIG_MAPPING[model_type]
    return str(config.__name__.removesuffix("Config")) + (head or "Model")


def _is_body(name: str) -> bool:
    parts = r"(embeddings|embeddings_project|encoder|transformer|pooler)(\.|$)"
    return re.match(rf"(\w+\.)?{parts}", name) is not None


def _apply_scores(found: dict[str, torch.Tensor]) -> list[str]:
    """Drop the scores of movement pruning, if their masks have been multiplied into the weights."""
    names = [name for name in found if name.endswith(SCORES)]
    for name in names:
        weight = found[name.removesuffix(SCORES) + "weight"]
        if float((weight == 0).float().mean()) < APPLIED:
            raise InputError(
                f"{name} is there, but its mask has not been multiplied into the weight, and the "
                "file does not say the threshold: apply it first, as docs/checkpoints.md shows"
            )
    for name in names:
        del found[name]
    return ["the scores of its movement pruning are left out"] if names else []


def _apply_masks(found: dict[str, torch.Tensor]) -> list[str]:
    """Multiply masks of their own into the weights they belong to."""
    names = [name for name in found if name.endswith(MASKED)]
    for name in names:
        prefix = name.rpartition(".")[0]
        weight = found.pop(name)
        found[f"{prefix}.weight"] = weight * found.pop(f"{prefix}.weight_mask").to(weight.dtype)
    for name in [name for name in found if name.endswith(".weight_mask")]:
        del found[name]  # beside a weight that has its zeros
    return ["masks are multiplied into their weights"] if names else []


def _decompress(found: dict[str, torch.Tensor]) -> list[str]:
    """Turn bit masks and integers of compressed-tensors into weights."""
    notes = []
    for name in [name for name in found if name.endswith(".bitmask")]:
        prefix = name.removesuffix(".bitmask")
        values, mask, shape, _ = (found.pop(f"{prefix}.{part}") for part in BITMASK)
        bits = np.unpackbits(mask.numpy(), axis=-1, count=int(shape[-1]), bitorder="little")
        weight = torch.zeros(*shape.tolist(), dtype=values.dtype)
        weight[torch.from_numpy(bits.astype(bool)).reshape(weight.shape)] = values
        found[f"{prefix.removesuffix('.weight')}.weight"] = weight
        notes.append("weights are unpacked from bit masks")
    for name in [name for name in found if name.endswith(".weight_scale")]:
        prefix = name.removesuffix("weight_scale")
        if prefix + "weight_zero_point" in found and found[prefix + "weight_zero_point"].any():
            raise InputError(f"{prefix}weight_zero_point is not 0, so its zeros would be lost")
        weight = found[prefix + "weight"]
        found[prefix + "weight"] = weight.float() * found[name].float()
        notes.append("weights are integers times their scales")
    for name in [name for name in found if name.endswith(SCALES)]:
        del found[name]
    return notes
