"""The Trainer's callback: rounds in the last part of a training, and survives a resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from toolkit.compress.flow import on_device
from toolkit.compress.model import evaluating
from toolkit.compress.quantization.calibration import find_ranges
from toolkit.compress.quantization.layers import (
    chosen_layers,
    encoder_linears,
    quantize,
    quantized_linears,
    round_weights,
)
from toolkit.compress.sparsity.calibration import draw_batches
from toolkit.compress.sparsity.callback import refuse_sharding, replaceable
from toolkit.config import QuantizationConfig
from toolkit.errors import InputError, UsageError
from toolkit.files import new_file

RANGES_FILE = "quantization.safetensors"


def rate_factor(step: int, start: int, end: int, first: float, last: float) -> float:
    """Return the learning rate at a step: from `first` at `start` linearly to `last` at `end`."""
    return first + (last - first) * (step - start) / max(end - start, 1)


class QuantizationCallback(TrainerCallback):
    """Trains a model for INT8 while `transformers.Trainer` trains it (QAT).

    From `start_epoch` on the encoder's linear layers compute with rounded weights and inputs, while
    the optimizer goes on moving the weights behind them. At the end the weights are on their grid.
    The inputs' ranges are calibrated on training examples, as `export` would: at `start_epoch`,
    every epoch from there, and at `freeze_epoch` for the last time.

    A checkpoint of the Trainer holds the inputs' ranges, so that training resumed from it goes on
    exactly as if it had never stopped.

    Args:
        quantization: Epochs, learning rates, and the layers left out.
        is_rewound: Whether pruning has a learning rate of its own (`sparsity.rewind`), which then
            stays as it is until `start_epoch`. Otherwise the Trainer's schedule is completed until
            there.
    """

    def __init__(self, quantization: QuantizationConfig, is_rewound: bool = False) -> None:
        self.quantization = quantization
        self.is_rewound = is_rewound

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn epochs into optimizer steps; take up the ranges of a resumed run.

        Raises:
            UsageError: The run is too short, its parameters are sharded, a layer is unknown, or the
                learning rate has a schedule that cannot be replaced.
            InputError: The checkpoint to resume from lacks its ranges.
        """
        q = self.quantization
        refuse_sharding(args, "quantization")
        self.names = chosen_layers(list(encoder_linears(kwargs["model"])), q.keep_float)
        batches = len(kwargs["train_dataloader"])
        self.steps_per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        self.start, self.freeze = qat_steps(q, self.steps_per_epoch, state.max_steps)
        self._set_rate(args, kwargs["lr_scheduler"], state.max_steps)
        if state.global_step > 0:
            self._read_state(args, state, kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to round, and find the ranges, where it is time."""
        model, step = kwargs["model"], state.global_step
        if step <= self.freeze:
            state.best_metric = None  # what has not been rounded must not win
        if step == self.start:
            quantize(model, self.names)
        if step in range(self.start, self.freeze, self.steps_per_epoch) or step == self.freeze:
            self._calibrate(args, kwargs["train_dataloader"], model, seed=step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the ranges into the Trainer's checkpoint; none yet is an empty file."""
        if state.is_world_process_zero:
            ranges = {
                f"{name}.{end}": getattr(module.input, end).clone()  # shared ones would be refused
                for name, module in quantized_linears(kwargs["model"]).items()
                for end in ("low", "high")
            }
            with new_file(_ranges_file(args, state)) as temporary:
                save_file(ranges, temporary)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Round the weights for good."""
        round_weights(kwargs["model"])

    def _calibrate(self, args: Any, data: Any, model: Any, seed: int) -> None:
        """Choose every input's range anew, by other examples each time."""
        options = replace(self.quantization, smooth=None)  # the weights are not to be changed
        count, size = options.num_calibration_examples, args.per_device_eval_batch_size
        drawn = draw_batches(data.dataset, data.collate_fn, count, size, seed)
        batches = [on_device(model, batch) for batch in drawn]
        with evaluating(model):
            find_ranges(model, quantized_linears(model), batches, options)

    def _set_rate(self, args: Any, scheduler: Any, max_steps: int) -> None:
        """Let the Trainer's schedule end at `start`, and begin another one there."""
        q, scheduler = self.quantization, replaceable(scheduler, "quantization=int8")
        first = (q.learning_rate or args.learning_rate) / args.learning_rate
        last = q.final_learning_rate / args.learning_rate

        def after(of_trainer: Any) -> Any:
            def factor(step: int) -> float:
                if step >= self.start:
                    return rate_factor(step, self.start, max_steps, first, last)
                in_full = step if self.is_rewound else round(step * max_steps / self.start)
                return float(of_trainer(in_full))

            return factor

        scheduler.lr_lambdas = [after(before) for before in scheduler.lr_lambdas]
        pairs = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True)
        for (group, base), factor in zip(pairs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)

    def _read_state(self, args: Any, state: Any, model: Any) -> None:
        path = _ranges_file(args, state)
        if not path.is_file():
            raise InputError(
                f"expected the ranges of the run to resume at {path}, but there is no such file: "
                "resume from a checkpoint below the Trainer's own output_dir"
            )
        ranges = load_file(path)
        if not ranges:
            return
        quantize(model, self.names)
        modules = quantized_linears(model)
        if ranges.keys() != {f"{name}.{end}" for name in modules for end in ("low", "high")}:
            raise InputError(f"the ranges in {path} belong to another model than the one trained")
        for name, module in modules.items():
            device = module.weight.device
            module.input.reach(*(ranges[f"{name}.{end}"].to(device) for end in ("low", "high")))


def qat_steps(q: QuantizationConfig, steps_per_epoch: int, max_steps: int) -> tuple[int, int]:
    """Return the step from which a training rounds, and the one from which ranges are frozen.

    Raises:
        UsageError: Training ends before.
    """
    start, freeze = q.start_epoch, q.freeze_epoch
    first = round(0.75 * max_steps if start is None else start * steps_per_epoch)
    if first >= max_steps:
        first_epoch = first / steps_per_epoch
        raise UsageError(
            f"INT8 training starts at epoch {first_epoch:g} (quantization.start_epoch), but "
            f"training ends after {max_steps / steps_per_epoch:g} epochs: train longer "
            "(trainer.num_train_epochs) or start earlier"
        )
    then = round((first + max_steps) / 2 if freeze is None else freeze * steps_per_epoch)
    return first, max(then, first)


def _ranges_file(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / RANGES_FILE
