"""The Trainer's callback: prunes as scheduled, keeps pruned weights at zero, survives a resume."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from toolkit.compress.sparsity.magnitude import magnitude_mask
from toolkit.compress.sparsity.schedule import sparsity_at
from toolkit.compress.sparsity.weights import prunable_weights
from toolkit.config import SparsityConfig
from toolkit.errors import InputError, UsageError
from toolkit.files import new_file

MASKS_FILE = "masks.safetensors"


class SparsificationCallback(TrainerCallback):
    """Prunes a model while `transformers.Trainer` trains it.

    Works with gradient accumulation, mixed precision and DDP, where every process computes the same
    masks from the same weights. A checkpoint of the Trainer holds the masks, so that training
    resumed from it goes on exactly as if it had never stopped.

    Args:
        final_sparsity: Fraction of zeros from `end_epoch` on, in [0, 1).
        initial_sparsity: Fraction of zeros at `start_epoch`, in [0, 1).
        start_epoch: Epoch at which pruning starts, >= 0.
        end_epoch: Epoch at which the final sparsity is reached, >= `start_epoch`.
        update_frequency: Epochs between two mask updates, > 0.
        block_shape: (rows, columns) of the blocks that are kept or dropped together.

    Raises:
        ValueError: A value is out of its range.

    Source: the defaults are those of Neural Magic's recipes (2021), as in conf/sparsity/dense.yaml.
    """

    def __init__(
        self,
        *,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        start_epoch: float = 2.0,
        end_epoch: float = 20.0,
        update_frequency: float = 0.01,
        block_shape: tuple[int, int] = (1, 1),
    ) -> None:
        self.sparsity = SparsityConfig(  # which checks the ranges
            name="",
            final_sparsity=final_sparsity,
            initial_sparsity=initial_sparsity,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            update_frequency=update_frequency,
            block_shape=list(block_shape),
            target_speedup=None,  # structured pruning comes before training
            target_latency_ms=None,
            calibration_samples=1,
        )
        self.masks: dict[str, torch.Tensor] = {}  # True where kept; empty before the first step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn epochs into optimizer steps; take up the masks of a resumed run.

        Raises:
            UsageError: The run is too short, or its parameters are sharded.
            InputError: The checkpoint to resume from lacks its masks.
        """
        _refuse_sharding(args)
        batches = len(kwargs["train_dataloader"])
        steps_per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        self.start_step = round(self.sparsity.start_epoch * steps_per_epoch)
        self.every = max(round(self.sparsity.update_frequency * steps_per_epoch), 1)
        end_step = round(self.sparsity.end_epoch * steps_per_epoch)
        if end_step > state.max_steps:
            raise UsageError(
                f"pruning ends at sparsity.end_epoch={self.sparsity.end_epoch}, but training ends "
                f"after {state.max_steps / steps_per_epoch:g} epochs: train longer "
                "(trainer.num_train_epochs) or end pruning earlier"
            )
        # The last step that begins is number max_steps - 1.
        self.end_step = max(min(end_step, state.max_steps - 1), 0)
        self.start_step = min(self.start_step, self.end_step)
        self.weights = prunable_weights(kwargs["model"])
        self.masks = {}
        if state.global_step > self.start_step:
            self.masks = self._read_masks(args, state)
        # Masked before they are clipped: the norm must not count gradients that are thrown away.
        self.hooks = [
            weight.register_post_accumulate_grad_hook(self._mask_gradient(name))
            for name, weight in self.weights.items()
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune further where the schedule says so, before the first micro-batch."""
        step = state.global_step
        if step <= self.end_step:
            state.best_metric = None  # a less sparse model must not win `load_best_model_at_end`
        is_in_time = self.start_step <= step <= self.end_step
        is_due = (step - self.start_step) % self.every == 0 or step == self.end_step
        if not (is_in_time and is_due):
            return
        s = self.sparsity
        target = sparsity_at(
            step, self.start_step, self.end_step, s.initial_sparsity, s.final_sparsity
        )
        n, k = s.block_shape
        for name, weight in self.weights.items():
            self.masks[name] = magnitude_mask(weight, target, (n, k))
            # Adam's moments of pruned weights would go on moving them.
            for moment in kwargs["optimizer"].state.get(weight, {}).values():
                if isinstance(moment, torch.Tensor) and moment.shape == weight.shape:
                    moment.masked_fill_(~self.masks[name], 0.0)
        self._mask_weights()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put pruned weights back to zero, whatever the optimizer made of them."""
        self._mask_weights()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the masks into the Trainer's checkpoint; none yet is an empty file."""
        if state.is_world_process_zero:
            with new_file(_masks_path(args, state)) as temporary:
                save_file(self.masks, temporary)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave no hooks behind."""
        for hook in self.hooks:
            hook.remove()

    def _mask_weights(self) -> None:
        for name, mask in self.masks.items():
            self.weights[name].data.masked_fill_(~mask, 0.0)

    def _mask_gradient(self, name: str) -> Any:
        def hook(weight: torch.Tensor) -> None:
            if name in self.masks and weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0.0)

        return hook

    def _read_masks(self, args: Any, state: Any) -> dict[str, torch.Tensor]:
        path = _masks_path(args, state)
        if not path.is_file():
            raise InputError(
                f"expected the masks of the run to resume at {path}, but there is no such file: "
                "resume from a checkpoint below the Trainer's own output_dir"
            )
        masks = load_file(path)
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        if {name: mask.shape for name, mask in masks.items()} != shapes:
            raise InputError(f"the masks in {path} belong to another model than the one trained")
        return {name: mask.to(self.weights[name].device) for name, mask in masks.items()}


def _masks_path(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / MASKS_FILE


def _refuse_sharding(args: Any) -> None:
    # Set up by the Trainer, so asked no earlier than this.
    from accelerate.state import AcceleratorState

    kind = AcceleratorState().distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP", "XLA"):
        raise UsageError(
            f"pruning needs whole weights in every process, but {kind} shards them: use DDP "
            "(torchrun or accelerate without FSDP and DeepSpeed), or train without sparsity"
        )
