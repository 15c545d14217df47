"""What `export` prints: the file, how near it is to torch, its zeros, kernels and integers."""

from collections import Counter
from pathlib import Path
from typing import Any

from toolkit.artifact.exported import size_bytes
from toolkit.progress import say, tell

HALF = 0.5  # a layer of this sparsity should not run dense, and is worth a warning if it does


def print_summary(folder: Path, facts: dict[str, Any]) -> None:
    """Print what an export folder holds, from the facts of its `export.json`."""
    parity, zeros = facts["parity"], facts["zeros"]
    size = size_bytes(folder / "model.onnx")
    tell(f"exported {folder / 'model.onnx'}: {size / 1e6:.1f} MB, opset {facts['opset']}")
    for engine, difference in parity["max_difference"].items():
        told = "not installed, not compared" if difference is None else f"{difference:.2g}"
        say(f"largest difference to torch, {engine}: {told}")
    say(f"compared on {parity['texts']}")
    kept = (
        "those of rounding among them" if facts["quantization"] else "as many as in the checkpoint"
    )
    say(f"zeros in the encoder's weights: {zeros['encoder']:.2%}, {kept}")
    for name, layer in parity["kernels"].items():
        if layer["kernel"] == "dense" and layer["sparsity"] >= HALF:
            say(f"warning: {name} runs dense in spite of {layer['sparsity']:.0%} zeros")
    counts = Counter(layer["kernel"] for layer in parity["kernels"].values())
    say("kernels: " + ", ".join(f"{count} layers {name}" for name, count in counts.items()))
    if "sparse" in facts:
        told, sparse = "it computes the same bits", facts["sparse"]
        if sparse["max_difference"] > 0:
            told = f"rounded, which changes outputs by up to {sparse['max_difference']:.2g}"
        megabytes = f"{sparse['bytes'] / 1e6:.1f} MB in {sparse['values']}"
        say(f"{folder / 'model.sparse'}: {megabytes}, {told}")
    if facts["quantization"]:
        _print_quantization(facts["quantization"])


def _print_quantization(facts: dict[str, Any]) -> None:
    """Say how the ranges were found, and how sensitive each layer is, the most sensitive first."""
    if facts["method"] == "qat":
        say("INT8 as it was trained")
        return
    layers = facts["layers"]
    count = sum(layer["is_quantized"] for layer in layers)
    say(f"INT8: {count} layers, calibrated by {facts['method']} on {facts['texts']}")
    for layer in sorted(layers, key=lambda layer: -(layer["change"] or 0.0)):
        if layer["change"] is not None:
            told = "" if layer["is_quantized"] else ", kept in float32"
            say(f"  {layer['name']:26} changes the outputs by {layer['change']:.2%}{told}")
    if "metric" in facts:
        before, after = facts["metric"].values()
        say(f"metric in float32 {before:.2f} %, in INT8 {after:.2f} %")
