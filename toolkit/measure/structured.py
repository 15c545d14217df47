"""Structured pruning to a latency target: measure layers, choose, remove, measure again."""

import copy
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from toolkit.artifact.onnx_writer import quiet, write_onnx
from toolkit.compress.model import load_checkpoint, longest_text_of, save_checkpoint
from toolkit.compress.resume import explain_full_disk
from toolkit.compress.structured.calibrate import repair
from toolkit.compress.structured.prune import (
    NEURON_MULTIPLE,
    calibration_batches,
    choose_kept,
    removal_paths,
)
from toolkit.compress.structured.widths import shrink, widths_of
from toolkit.config import SparsityConfig, TrainRoot
from toolkit.environment import decide_num_threads
from toolkit.errors import UsageError
from toolkit.files import write_text
from toolkit.measure.latency import CostTable, latency_meter
from toolkit.measure.timing import warn_if_busy
from toolkit.progress import say
from toolkit.record import read_record

Facts = dict[str, Any]  # `structured` of the record
MISSED = 1.1  # times the target; predictions are within 1.02 on an idle machine


def shrink_to_target(
    config: TrainRoot,
    model: PreTrainedModel,
    features: Sequence[dict[str, Any]],
    steps_left: int = 1,
) -> Facts:
    """Remove heads and neurons, in place, until the engine is predicted to meet the target.

    Args:
        config: `sparsity` says the target, `bench` batch size and length, `engine` the rest.
        model: Fine-tuned; its layers are dropped already.
        features: Training texts, of which `sparsity.num_calibration` are drawn.
        steps_left: Times that the target must be within reach, this one among them.

    Raises:
        UsageError: The target cannot be reached, or several processes train.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "structured pruning measures and chooses in one process: run it alone with "
            "trainer.num_train_epochs=0, then train its checkpoint with model.path=DIR"
        )
    longest = longest_text_of(model.config)
    if config.bench.seq_len > longest:
        raise UsageError(
            f"bench.seq_len must be at most {longest}, the model's positions; "
            f"got {config.bench.seq_len}"
        )
    original = copy.deepcopy(model)
    original.set_attn_implementation("eager")  # the plainest graph, as `toolkit export` writes it
    original.train(False)
    before = widths_of(model)
    with tempfile.TemporaryDirectory(prefix="toolkit-structured-") as name:
        onnx = Path(name) / "model.onnx"
        with quiet():
            write_onnx(original.cpu(), onnx)
        warn_if_busy()
        shape = f"{config.bench.batch_size} x {config.bench.seq_len} tokens"
        say(f"timing layers of many widths at {shape} (bench.batch_size, bench.seq_len) …")
        with latency_meter(config, onnx) as meter:
            table = meter.table(NEURON_MULTIPLE)
            budget = budget_ms(config.sparsity, table, before, steps_left)
            say(f"choosing by {config.sparsity.num_calibration} texts …")
            batches = calibration_batches(
                model, features, config.sparsity.num_calibration, config.seed
            )
            kept = choose_kept(
                removal_paths(model, batches),
                table.attention_ms,
                table.feed_forward_ms,
                budget - table.fixed_ms,
            )
            assert kept is not None  # `budget_ms` has checked that
            shrink(model, kept)
            original.to(model.device)  # type: ignore[arg-type]  # decorated without its types
            repair(model, original, batches)
            after = widths_of(model)
            measured = meter.compare(before, after)
    predicted = [table.model_ms(widths) for widths in (before, after)]
    return {
        "target_speedup": config.sparsity.target_speedup,
        "target_latency_ms": config.sparsity.target_latency_ms,
        "batch_size": config.bench.batch_size,
        "seq_len": config.bench.seq_len,
        "num_threads": decide_num_threads(config.engine.num_threads)[0],
        "layer_widths": {"before": before, "after": after},
        "predicted": _times(*predicted),
        "measured": _times(*measured),
        "cost_table": asdict(table),
    }


def budget_ms(
    sparsity: SparsityConfig, table: CostTable, widths: list[list[int]], steps_left: int = 1
) -> float:
    """Return the milliseconds that the target allows a call of the whole model.

    Raises:
        UsageError: No widths are as fast as that, or as the target is after `steps_left` steps
            towards it; the sentence names the fastest.
    """
    dense = table.model_ms(widths)
    if sparsity.target_speedup is None:
        assert sparsity.target_latency_ms is not None
        budget = last = sparsity.target_latency_ms
        asked, easier = f"sparsity.target_latency_ms={budget:g}", "more time"
    else:
        whole = sparsity.target_speedup**steps_left
        budget, last = dense / sparsity.target_speedup, dense / whole
        asked, easier = f"sparsity.target_speedup={whole:g}", "a smaller factor"
    least = min(table.neurons)
    narrowest = table.model_ms([[1, min(least, neurons)] for _, neurons in widths])
    # rounding costs up, see `choose`, takes at most a few thousandths
    if last < 1.01 * narrowest:
        raise UsageError(
            f"{asked} cannot be reached: with one head and {least} neurons in each of the "
            f"{len(widths)} layers a call takes {_ms(narrowest)}, {dense / narrowest:.3g} times "
            f"as fast as {_ms(dense)} now; ask for {easier}, or drop layers, too (depth=…)"
        )
    return budget


def describe(facts: Facts) -> str:
    """Say in one line what was removed and what it brought."""
    widths = " ".join(f"{heads}/{neurons}" for heads, neurons in facts["layer_widths"]["after"])
    predicted, measured = facts["predicted"], facts["measured"]
    line = (
        f"heads/neurons left per layer: {widths}; {facts['batch_size']} x {facts['seq_len']} "
        f"tokens: predicted {_ms(predicted['latency_ms'])}, {predicted['speedup']:.2f}x; "
        f"measured {_ms(measured['latency_ms'])}, {measured['speedup']:.2f}x of "
        f"{_ms(measured['dense_latency_ms'])}"
    )
    speedup, latency_ms = facts["target_speedup"], facts["target_latency_ms"]
    target_ms = latency_ms or measured["dense_latency_ms"] / speedup
    if measured["latency_ms"] > MISSED * target_ms:
        target = f"{speedup:.3g}x" if latency_ms is None else f"{latency_ms:g} ms"
        line += (
            f"; by what was measured the target of {target} is missed: repeat on an idle machine, "
            "or ask for more than is needed"
        )
    if total := facts.get("total"):
        line += (
            f"; of the model before all {total['steps']} steps, their ratios multiplied: "
            f"predicted {total['predicted_speedup']:.2f}x, "
            f"measured {total['measured_speedup']:.2f}x"
        )
    return line


def shrink_or_resume(
    config: TrainRoot,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    features: Sequence[dict[str, Any]],
    earlier: Sequence[TrainRoot],
    steps_left: int,
) -> tuple[PreTrainedModel, Facts]:
    """Shrink a model, and keep it; or, with `resume=true`, go on with the one that was kept.

    Times measured again would differ, and what is chosen by them, too.

    Args:
        config: As `model`, `features` and `steps_left`, of `shrink_to_target`.
        tokenizer: Kept with the model.
        earlier: Finished steps towards the same target, whose speed-ups count in `total`.
    """
    folder = Path(config.output_dir) / "trainer" / "shrunk"
    if config.resume and (folder / "structured.json").is_file():
        return load_checkpoint(folder), json.loads((folder / "structured.json").read_text())
    with explain_full_disk(Path(config.output_dir)):
        facts = shrink_to_target(config, model, features, steps_left)
        if earlier:
            steps = [*(read_record(step.output_dir)["structured"] for step in earlier), facts]
            facts["total"] = {"steps": len(steps)} | {
                f"{how}_speedup": math.prod(step[how]["speedup"] for step in steps)
                for how in ("predicted", "measured")
            }
        save_checkpoint(folder, model, tokenizer)
        write_text(folder / "structured.json", json.dumps(facts))
    return model, facts


def _ms(value: float) -> str:
    """Write milliseconds with three digits, without an exponent."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _times(dense_ms: float, ms: float) -> dict[str, float]:
    return {"dense_latency_ms": dense_ms, "latency_ms": ms, "speedup": dense_ms / ms}
