"""The Trainer's callback: prunes as scheduled, keeps pruned weights at zero, survives a resume."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from toolkit.compress.sparsity.calibration import (
    Batches,
    draw_batches,
    layerwise_step,
    second_order_step,
)
from toolkit.compress.sparsity.floor import Floor, Verdict, parse_floor
from toolkit.compress.sparsity.masks import final_targets, masks_of
from toolkit.compress.sparsity.movement import MovementScores
from toolkit.compress.sparsity.schedule import rewound_rate, sparsity_at
from toolkit.compress.sparsity.weights import prunable_weights, zero_share
from toolkit.config import Method, Ranking, Schedule, default_sparsity
from toolkit.errors import InputError, UsageError
from toolkit.files import new_file
from toolkit.progress import say

MASKS_FILE = "masks.safetensors"
SCORES_FILE = "movement.safetensors"
FLOOR_FILE = "floor.safetensors"
KEEPS_ZEROS = (Schedule.once, Schedule.locked)


class SparsificationCallback(TrainerCallback):
    """Prunes a model while `transformers.Trainer` trains it.

    Works with gradient accumulation, mixed precision and DDP, where every process computes the same
    masks from the same weights. A checkpoint of the Trainer holds the masks, so that training
    resumed from it goes on exactly as if it had never stopped. The Trainer's log has the sparsity.

    Args:
        final_sparsity: Fraction of zeros from `end_epoch` on, in [0, 1).
        evaluate: Returns the metrics in percent; what a `floor` needs.
        options: Any other field of `toolkit.config.SparsityConfig`, such as `end_epoch=3` or
            `method="obert"`; what is not given is as in conf/sparsity/dense.yaml, the schedule of
            Neural Magic's recipes (2021).

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        *,
        final_sparsity: float,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        self.sparsity = default_sparsity(final_sparsity=final_sparsity, **options)
        self.evaluate = evaluate
        self.masks: dict[str, torch.Tensor] = {}  # True where kept; empty before the first step
        self.movement: MovementScores | None = None
        self.floor: Floor | None = None
        self.kept: dict[str, torch.Tensor] = {}  # the sparsest model that passed the floor
        self.current = 0.0  # sparsity of the masks
        self.held_steps = 0  # the schedule stood still for so many steps
        self.is_holding = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn epochs into optimizer steps; take up the masks of a resumed run.

        Raises:
            UsageError: The run is too short, its parameters are sharded, the weights have more
                zeros than asked for, or something that an option needs is missing.
            InputError: The checkpoint to resume from lacks its masks.
        """
        refuse_sharding(args, "sparsity")
        self.weights = prunable_weights(kwargs["model"])
        self._plan(len(kwargs["train_dataloader"]), args, state)
        self.masks = {}
        self.initial = self._initial_sparsity()
        if self.sparsity.method in (Method.movement, Method.soft_movement):
            is_soft = self.sparsity.method is Method.soft_movement
            self.movement = MovementScores(self.weights, self.sparsity.movement, is_soft)
            self.masks = {
                name: torch.ones_like(weight, dtype=torch.bool)
                for name, weight in self.weights.items()
            }
        if self.sparsity.schedule in KEEPS_ZEROS:
            if self.sparsity.schedule is Schedule.locked and not zero_share(self.weights.values()):
                raise UsageError(
                    "sparsity.schedule=locked keeps the zeros of the starting weights, but these "
                    "have none: name a sparse checkpoint with model=local model.path=DIR"
                )
            self._set_masks({name: weight.detach() != 0 for name, weight in self.weights.items()})
        if self.sparsity.floor is not None:
            if self.evaluate is None or args.load_best_model_at_end:
                raise UsageError(
                    "sparsity.floor chooses the model by its own evaluations: it needs `evaluate`, "
                    "and no trainer.load_best_model_at_end"
                )
            self.floor = parse_floor(self.sparsity.floor)
        if state.global_step > 0:
            self._read_state(args, state)
        if self.sparsity.rewind is not None:
            self._rewind(kwargs["lr_scheduler"], state.max_steps)
        if state.is_world_process_zero:
            self._announce()
        # Masked before they are clipped: the norm must not count gradients that are thrown away.
        if self.movement is not None:
            self.hooks = [
                weight.register_hook(self._learn_score(name))
                for name, weight in self.weights.items()
            ]
        else:
            self.hooks = [
                weight.register_post_accumulate_grad_hook(self._mask_gradient(name))
                for name, weight in self.weights.items()
            ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune further where the schedule says so, before the first micro-batch."""
        if self.sparsity.schedule in KEEPS_ZEROS:
            return
        if self.is_holding:
            self.held_steps += 1
            return
        step = state.global_step - self.held_steps
        if step <= self.end_step:
            state.best_metric = None  # a less sparse model must not win `load_best_model_at_end`
        # The scores of movement pruning go on learning when the final sparsity is reached.
        is_in_time = step >= self.start_step and (self.movement or step <= self.end_step)
        is_due = (step - self.start_step) % self.every == 0 or step == self.end_step
        if not (is_in_time and is_due):
            return
        targets = self._targets(step)
        if self.movement is not None:
            if self.movement.is_soft:
                masks = self.movement.soft_masks(self._progress(step))
            else:
                masks = masks_of(self.movement.scores, targets, self.sparsity)
        elif self.sparsity.method is Method.obert:
            fisher = self.sparsity.fisher
            count = fisher.num_gradients * fisher.batch_size
            batches = self._drawn(kwargs, count, fisher.batch_size, state)
            masks = second_order_step(
                kwargs["model"], self.weights, targets, self.sparsity, batches
            )
        elif self.sparsity.method in (Method.wanda, Method.sparsegpt):
            count, size = self.sparsity.num_calibration, args.per_device_eval_batch_size
            batches = self._drawn(kwargs, count, size, state)
            masks = layerwise_step(kwargs["model"], targets, self.sparsity, batches)
        else:
            magnitudes = {name: weight.detach().abs() for name, weight in self.weights.items()}
            masks = masks_of(magnitudes, targets, self.sparsity)
        self._set_masks(masks)
        # Adam's moments of pruned weights would go on moving them.
        for name, weight in self.weights.items():
            for moment in kwargs["optimizer"].state.get(weight, {}).values():
                if isinstance(moment, torch.Tensor) and moment.shape == weight.shape:
                    moment.masked_fill_(~self.masks[name], 0.0)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put pruned weights back to zero, whatever the optimizer made of them."""
        if self.movement is not None:
            for name, mask in self.masks.items():
                self.movement.remember(name, self.weights[name], mask)
            group = kwargs["optimizer"].param_groups[0]
            factor = group["lr"] / group.get("initial_lr", group["lr"])
            self.movement.step(self._progress(state.global_step - self.held_steps), factor)
        self._mask_weights()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the sparsity to what is logged."""
        logs: dict[str, float] = kwargs["logs"]
        if "train_runtime" not in logs:
            logs["sparsity"] = state.log_history[-1]["sparsity"] = round(self.current, 6)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate, where there is a floor: go on, hold, or roll back."""
        if self.floor is None:
            return
        assert self.evaluate is not None
        floor, value = self.floor, self.evaluate()[self.floor.metric]
        verdict = floor.judge(self.current, value)
        if floor.passes(value) and (self.current, value) == (floor.best_sparsity, floor.best_value):
            # a view of the model's state would change with it
            self.kept = {key: part.clone() for key, part in kwargs["model"].state_dict().items()}
        self.is_holding = verdict is not Verdict.go_on
        if verdict is Verdict.roll_back:
            self._restore(kwargs["model"])
        if state.is_world_process_zero:
            say(
                f"epoch {state.epoch:g}: {floor.metric} {value:.2f} % at {self.current:.1%} zeros, "
                f"floor {floor.least:g} %: {verdict.value}"
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what a resume needs into the Trainer's checkpoint; no masks yet is an empty file.

        The masks come last: with them the checkpoint is complete.
        """
        if not state.is_world_process_zero:
            return
        folder = _checkpoint(args, state)
        if self.movement is not None:
            with new_file(folder / SCORES_FILE) as temporary:
                save_file(self.movement.state(), temporary)
        if self.floor is not None:
            facts = {"floor": asdict(self.floor), "is_holding": self.is_holding}
            with new_file(folder / FLOOR_FILE) as temporary:
                save_file(self.kept, temporary, {"state": json.dumps(facts)})
        facts = {"initial": self.initial, "held_steps": self.held_steps}
        with new_file(folder / MASKS_FILE) as temporary:
            save_file(self.masks, temporary, {"state": json.dumps(facts)})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave no hooks behind; with a floor, end with the sparsest model that passed."""
        for hook in self.hooks:
            hook.remove()
        if self.floor is not None and self.floor.failures > 0 and self.kept:
            self._restore(kwargs["model"])

    def _plan(self, batches: int, args: Any, state: Any) -> None:
        """Find the steps at which pruning starts and ends, and those between two updates."""
        s = self.sparsity
        steps_per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        if s.schedule in KEEPS_ZEROS:
            self.start_step = self.end_step = 0
            self.every = 1
            return
        self.start_step = round(s.start_epoch * steps_per_epoch)
        end_step = round(s.end_epoch * steps_per_epoch)
        if end_step > state.max_steps:
            raise UsageError(
                f"pruning ends at sparsity.end_epoch={s.end_epoch}, but training ends "
                f"after {state.max_steps / steps_per_epoch:g} epochs: train longer "
                "(trainer.num_train_epochs) or end pruning earlier"
            )
        # The last step that begins is number max_steps - 1.
        self.end_step = max(min(end_step, state.max_steps - 1), 0)
        self.start_step = min(self.start_step, self.end_step)
        self.every = max(round(s.update_frequency * steps_per_epoch), 1)
        if s.steps is not None:
            self.every = max((self.end_step - self.start_step) // max(len(s.steps) - 1, 1), 1)

    def _announce(self) -> None:
        """Say what mask updates will cost, where they look at data."""
        s = self.sparsity
        looked_at = {
            Method.obert: s.fisher.num_gradients * s.fisher.batch_size * s.fisher.recomputations,
            Method.wanda: s.num_calibration,
            Method.sparsegpt: s.num_calibration,
        }.get(s.method)
        if looked_at is not None and s.schedule not in KEEPS_ZEROS:
            say(
                f"pruning by {s.method.value}: {len(self._updates())} mask updates, each looks at "
                f"{looked_at} examples (sparsity.update_frequency sets how many updates)"
            )

    def _initial_sparsity(self) -> dict[str, float]:
        """Return where each weight starts: as configured, or with the zeros that it has."""
        s = self.sparsity
        if s.schedule in KEEPS_ZEROS:
            return {}
        if s.initial_sparsity is not None:
            return dict.fromkeys(self.weights, s.initial_sparsity)
        if s.ranking is Ranking["global"]:
            return dict.fromkeys(self.weights, zero_share(self.weights.values()))
        return {name: zero_share([weight]) for name, weight in self.weights.items()}

    def _updates(self) -> list[int]:
        """List the steps at which the schedule updates the masks."""
        return sorted({*range(self.start_step, self.end_step, self.every), self.end_step})

    def _targets(self, step: int) -> dict[str, float]:
        s, steps = self.sparsity, self.sparsity.steps or ()
        targets = {}
        for name, final in final_targets(self.weights, s).items():
            if final > 0 and self.initial[name] > final + 1e-3:
                raise UsageError(
                    f"{name} already has {self.initial[name]:.1%} zeros, more than the final "
                    f"sparsity of {final:.1%}: ask for more, or keep its zeros with "
                    "sparsity.schedule=locked"
                )
            initial = min(self.initial[name], final)
            targets[name] = sparsity_at(
                step, self.start_step, self.end_step, initial, final, s.schedule, steps
            )
        return targets

    def _progress(self, step: int) -> float:
        """Return how far the schedule is from 0 to 1."""
        schedule = Schedule.cubic if self.sparsity.steps else self.sparsity.schedule
        return sparsity_at(step, self.start_step, self.end_step, 0.0, 1.0, schedule)

    def _drawn(self, kwargs: Any, count: int, batch_size: int, state: Any) -> Batches:
        """Draw training examples, others at every step of training."""
        data = kwargs["train_dataloader"]

        def batches() -> Iterator[Any]:
            return draw_batches(
                data.dataset, data.collate_fn, count, batch_size, seed=state.global_step
            )

        return batches

    def _set_masks(self, masks: dict[str, torch.Tensor]) -> None:
        self.masks = masks
        kept = sum(int(mask.sum()) for mask in masks.values())
        self.current = 1.0 - kept / sum(mask.numel() for mask in masks.values())
        self._mask_weights()

    def _mask_weights(self) -> None:
        for name, mask in self.masks.items():
            if self.movement is not None:  # a weight that comes back has its former value
                self.weights[name].data.copy_(self.movement.dense[name])
            self.weights[name].data.masked_fill_(~mask, 0.0)

    def _mask_gradient(self, name: str) -> Any:
        def hook(weight: torch.Tensor) -> None:
            if name in self.masks and weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0.0)

        return hook

    def _learn_score(self, name: str) -> Any:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            assert self.movement is not None
            self.movement.add_gradient(name, gradient)
            return gradient.masked_fill(~self.masks[name], 0.0)

        return hook

    def _rewind(self, scheduler: Any, max_steps: int) -> None:
        """Replace the Trainer's schedule of the learning rate."""
        scheduler = replaceable(scheduler, "sparsity.rewind")
        boundaries = sorted({0, *self._updates(), max_steps})
        final = self.sparsity.rewind

        def factor(step: int) -> float:
            assert final is not None
            return rewound_rate(step, boundaries, final)

        scheduler.lr_lambdas = [factor] * len(scheduler.lr_lambdas)
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)

    def _restore(self, model: Any) -> None:
        model.load_state_dict(self.kept)
        if self.movement is not None:
            for name, weight in self.weights.items():
                self.movement.dense[name].copy_(weight.detach())
        self._set_masks({name: weight.detach() != 0 for name, weight in self.weights.items()})

    def _read_state(self, args: Any, state: Any) -> None:
        folder = _checkpoint(args, state)
        path = folder / MASKS_FILE
        if not path.is_file():
            raise InputError(
                f"expected the masks of the run to resume at {path}, but there is no such file: "
                "resume from a checkpoint below the Trainer's own output_dir"
            )
        masks, facts = _read(path)
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        if masks and {name: mask.shape for name, mask in masks.items()} != shapes:
            raise InputError(f"the masks in {path} belong to another model than the one trained")
        self.initial, self.held_steps = facts["initial"], facts["held_steps"]
        if self.movement is not None:
            self.movement.restore(load_file(folder / SCORES_FILE))
        if self.floor is not None:
            self.kept, facts = _read(folder / FLOOR_FILE)
            self.floor, self.is_holding = Floor(**facts["floor"]), facts["is_holding"]
        if masks:
            self._set_masks(
                {name: mask.to(self.weights[name].device) for name, mask in masks.items()}
            )


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["state"]
        )


def replaceable(scheduler: Any, option: str) -> Any:
    """Return the schedule of the learning rate within what the Trainer has.

    Raises:
        UsageError: `option` replaces it, but it is of a kind that cannot be.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if not hasattr(scheduler, "lr_lambdas"):
        raise UsageError(
            f"{option} replaces schedules such as trainer.lr_scheduler_type=linear; "
            f"it cannot replace a {type(scheduler).__name__}"
        )
    return scheduler


def refuse_sharding(args: Any, option: str) -> None:
    """Refuse a Trainer whose processes hold parts of the weights.

    Raises:
        UsageError: It is one, and `option` looks at whole weights.
    """
    # Set up by the Trainer, so asked no earlier than this.
    from accelerate.state import AcceleratorState

    kind = AcceleratorState().distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP", "XLA"):
        raise UsageError(
            f"{option} needs whole weights in every process, but {kind} shards them: use DDP "
            f"(torchrun or accelerate without FSDP and DeepSpeed), or train without {option}"
        )
