"""A target of speed in several steps, with training after each: the runs that this takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.compress.sparsity.callback import KEEPS_ZEROS
from toolkit.config import Schedule, TeacherKind, TrainRoot, Weights
from toolkit.errors import UsageError


def steps_of(config: TrainRoot) -> list[TrainRoot]:
    """Divide a run into its `sparsity.target_steps`.

    Each is asked for the same factor, and trains for an equal share of the epochs. All but the last
    are runs of their own, in `output_dir/steps/1` and so on, each from the checkpoint of the one
    before; the last writes where the whole run does. Layers are dropped in the first, single
    weights in the last, which is also where INT8 is learnt, and all learn from the teacher of the
    whole run.

    Returns:
        One configuration per step, each with `target_steps=1`; a single step is `config` itself.

    Raises:
        UsageError: Nothing is trained after each step, or the whole run's teacher or pruning has no
            meaning in one of them.
    """
    whole, count = config.sparsity, config.sparsity.target_steps
    if count == 1:
        return [config]
    assert whole.target_speedup is not None  # `SparsityConfig` has checked that
    _check(config)
    teacher = config.teacher
    if teacher.kind is TeacherKind.self:  # which later steps no longer are
        teacher = replace(teacher, kind=TeacherKind.dense, path=config.model.path)
    last = replace(
        config,
        sparsity=replace(whole, target_steps=1, target_speedup=whole.target_speedup ** (1 / count)),
        trainer=config.trainer | {"num_train_epochs": config.trainer["num_train_epochs"] / count},
        teacher=teacher,
    )
    is_locked = whole.schedule is Schedule.locked  # zeros that are to be kept are kept throughout
    earlier = replace(
        last,
        sparsity=replace(
            last.sparsity,
            final_sparsity=0.0,
            schedule=whole.schedule if is_locked else Schedule.cubic,  # stepwise would want steps
            steps=None,
            parts=None,
            floor=None,
        ),
        quantization=replace(config.quantization, bits=None),
        then=[],
        min_accuracy=None,
        published={},
    )
    steps = []
    start: dict[str, Any] = {}  # what changes where a step begins from the one before
    for number in range(1, count):
        folder = Path(config.output_dir) / "steps" / str(number)
        steps.append(replace(earlier, output_dir=str(folder), **start))
        path = str(folder / "checkpoint")
        start = {
            "model": replace(config.model, path=path, weights=Weights.pretrained),
            "depth": replace(config.depth, name="full", num_layers=None, keep=None, drop=None),
        }
    return [*steps, replace(last, **start)]


def _check(config: TrainRoot) -> None:
    """Refuse now what a later step would refuse after others have been trained."""
    s, teacher, count = config.sparsity, config.teacher, config.sparsity.target_steps
    asked = f"sparsity.target_steps={count}"
    epochs = config.trainer.get("num_train_epochs", 0)
    if epochs <= 0 or config.trainer.get("max_steps", -1) > 0:
        raise UsageError(
            f"{asked} trains after each step for an equal share of trainer.num_train_epochs, which "
            f"must be above 0, without trainer.max_steps; got {epochs:g} epochs"
            + (f" and trainer.max_steps={config.trainer['max_steps']}" if epochs > 0 else "")
            + ": set it, or leave sparsity.target_steps at 1"
        )
    if s.final_sparsity > 0 and s.schedule not in KEEPS_ZEROS and s.end_epoch > epochs / count:
        raise UsageError(
            f"{asked} prunes single weights in the last step, which has {epochs / count:g} epochs "
            f"of its own; got sparsity.end_epoch={s.end_epoch:g}: train longer "
            "(trainer.num_train_epochs) or end pruning earlier"
        )
    if config.rates is not None:
        raise UsageError(
            f"{asked} trains anew after each step, but rates says the learning rate of one "
            "training: choose one"
        )
    if teacher.kind is TeacherKind.self and config.model.weights is Weights.random:
        raise UsageError(
            f"{asked} with teacher=self learns in every step from the model that the run begins "
            f"with, but model={config.model.name} has new weights: name a fine-tuned checkpoint "
            "with model=local model.path=DIR"
        )
    is_compared = teacher.kind is not TeacherKind.none and teacher.hidden_weight > 0
    depth = config.depth
    drops = any(value is not None for value in (depth.num_layers, depth.keep, depth.drop))
    if is_compared and drops and teacher.layer_map is None:
        raise UsageError(
            f"{asked} with teacher.hidden_weight: a step after the first cannot tell which layers "
            "depth has dropped, so name the teacher's layer for each that stays with "
            "teacher.layer_map, such as [1,3,5]"
        )
