"""Gradual magnitude pruning: schedule and mask as pure functions, then the Trainer's callback.

A mask is 1 where a weight is kept. `sparsity` is a fraction of zeros in [0, 1).
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from toolkit.compress.depth import encoder_layers
from toolkit.config import SparsityConfig
from toolkit.errors import InputError, UsageError

MASKS_FILE = "masks.safetensors"


def sparsity_at(
    time: float, start: float, end: float, initial_sparsity: float, final_sparsity: float
) -> float:
    """Compute the sparsity that the cubic schedule asks for: fast at first, then ever slower.

    `s_f + (s_i - s_f) (1 - t)³` with t rising from 0 to 1 between `start` and `end`.

    Args:
        time: In steps or epochs, as `start` and `end`.
        start: Before it nothing is pruned.
        end: From here on it is exactly `final_sparsity`; not before `start`.
        initial_sparsity: At `start`, in [0, 1).
        final_sparsity: In [0, 1).

    Returns:
        A fraction of zeros in [0, 1).

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.
    """
    if time < start:
        return 0.0
    if time >= end:
        return final_sparsity
    remaining = 1.0 - (time - start) / (end - start)
    return final_sparsity + (initial_sparsity - final_sparsity) * remaining**3


def magnitude_mask(
    weight: torch.Tensor, sparsity: float, block_shape: tuple[int, int]
) -> torch.Tensor:
    """Keep the blocks with the largest sums of magnitudes.

    Exactly `round(sparsity · blocks)` blocks are dropped; among equals those that come first.

    Args:
        weight: (N, K), any float type; N outputs, K inputs.
        sparsity: Fraction of blocks to drop, in [0, 1].
        block_shape: (n, k), which must divide (N, K); (1, 1) is unstructured.

    Returns:
        (N, K) bool, True where kept.

    Raises:
        UsageError: The blocks do not divide the weight.
    """
    rows, columns = weight.shape
    n, k = block_shape
    if rows % n or columns % k:
        raise UsageError(
            f"sparsity.block_shape={[n, k]} must divide every pruned weight; one is "
            f"{rows} x {columns}"
        )
    scores = weight.detach().abs().float()
    scores = scores.reshape(rows // n, n, columns // k, k).sum(dim=(1, 3))  # (N / n, K / k)
    keep = _all_but_smallest(scores.flatten(), round(sparsity * scores.numel())).reshape(
        scores.shape
    )
    return keep.repeat_interleave(n, 0).repeat_interleave(k, 1)


def prunable_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name the weights that are pruned: the six linear ones of each encoder layer.

    Query, key, value, attention output, intermediate and output, whatever the architecture calls
    them. Never embeddings, pooler, LayerNorm, biases or the task's head.

    Returns:
        Parameters by their names in `state_dict()`, in its order; each (N, K).
    """
    layers = encoder_layers(model)
    linear = {
        id(module.weight)
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    }
    weights = {name: value for name, value in model.named_parameters() if id(value) in linear}
    assert len(weights) == 6 * len(layers), f"{len(weights)} linear weights in {len(layers)} layers"
    return weights


def prune_once(model: PreTrainedModel, sparsity: SparsityConfig) -> PreTrainedModel:
    """Set the smallest weights to zero, at the final sparsity, without any training.

    Returns:
        The same model.
    """
    n, k = sparsity.block_shape
    for weight in prunable_weights(model).values():
        mask = magnitude_mask(weight, sparsity.final_sparsity, (n, k))
        weight.data.masked_fill_(~mask, 0.0)
    return model


def measure_sparsity(model: PreTrainedModel) -> dict[str, Any]:
    """Count the zeros, for `record.json`.

    Returns:
        `encoder` (over the prunable weights), `whole_model` (over all parameters), and `tensors`:
        name, shape and sparsity of each prunable weight.
    """
    weights = prunable_weights(model)
    zeros = {name: _zeros(weight) for name, weight in weights.items()}
    parameters = list(model.parameters())
    return {
        "encoder": sum(zeros.values()) / sum(weight.numel() for weight in weights.values()),
        "whole_model": sum(map(_zeros, parameters)) / sum(p.numel() for p in parameters),
        "tensors": [
            {
                "name": name,
                "shape": list(weight.shape),
                "sparsity": zeros[name] / weight.numel(),
            }
            for name, weight in weights.items()
        ],
    }


class SparsificationCallback(TrainerCallback):
    """Prunes a model while `transformers.Trainer` trains it.

    Works with gradient accumulation, mixed precision and DDP, where every process computes the same
    masks from the same weights. A checkpoint of the Trainer holds the masks, so that training
    resumed from it goes on exactly as if it had never stopped.
    """

    def __init__(self, sparsity: SparsityConfig) -> None:
        self.sparsity = sparsity
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
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._mask_gradient(name)
            )
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
            path = _masks_path(args, state)
            partial = path.with_suffix(".partial")
            save_file(self.masks, partial)
            partial.replace(path)

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
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    kind = AcceleratorState().distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP", "XLA"):
        raise UsageError(
            f"pruning needs whole weights in every process, but {kind} shards them: use DDP "
            "(torchrun or accelerate without FSDP and DeepSpeed), or train without sparsity"
        )


def _zeros(weight: torch.Tensor) -> int:
    return weight.numel() - int(torch.count_nonzero(weight))


def _all_but_smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark all but the `count` smallest scores (M,); a selection, ten times as fast as a sort.

    Of equal scores those that come first go, so that every process finds the same mask.
    """
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = torch.kthvalue(scores, count).values
    keep = ~(scores < limit)  # a NaN stays, to be seen
    equal = torch.nonzero(scores == limit).flatten()
    keep[equal[: count - int((scores < limit).sum())]] = False
    return keep
