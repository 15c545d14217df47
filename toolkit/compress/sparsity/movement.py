"""Movement pruning: what a weight is worth is learnt, from where training moves it.

The forward pass uses `W · mask`. The score S of a weight has the gradient `dL/dS = dL/d(W · mask)
· W`, also where the mask is 0 (straight-through), so that a dropped weight can come back.
"""

from collections.abc import Mapping

import torch

from toolkit.config import MovementOptions


class MovementScores:
    """The scores of all pruned weights, the optimizer that learns them, and the dropped weights.

    Args:
        weights: (N, K) parameters by name. While they train, each holds `W · mask`.
        movement: `learning_rate`, `magnitude` and, for soft movement, `threshold` and
            `regularization`.
        is_soft: Whether sigmoid(S) also pays `regularization`, as soft movement does.

    Attributes:
        scores: (N, K) float32 each; zero at the start, or what `magnitude` says.
        dense: W (N, K), dropped weights included.

    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", sections 3, 4.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], movement: MovementOptions, is_soft: bool
    ) -> None:
        self.movement = movement
        self.is_soft = is_soft
        self.dense = {name: weight.detach().clone() for name, weight in weights.items()}
        self.scores = {
            name: initial_scores(weight.detach(), movement.magnitude)
            for name, weight in weights.items()
        }
        self.optimizer = torch.optim.Adam(
            list(self.scores.values()), lr=movement.learning_rate, fused=True
        )

    def add_gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Take in `dL/d(W · mask)` (N, K) of one micro-batch."""
        score = self.scores[name]
        movement = gradient.float() * self.dense[name]
        score.grad = movement if score.grad is None else score.grad + movement

    def step(self, progress: float, rate_factor: float) -> None:
        """Let the scores learn from the gradients of one optimizer step.

        Args:
            progress: Of the schedule, in [0, 1]: how much of the regularization counts yet.
            rate_factor: The weights' learning rate now, as a fraction of what it was set to.
        """
        self.optimizer.param_groups[0]["lr"] = self.movement.learning_rate * rate_factor
        if self.is_soft:
            rate = progress * self.movement.regularization / len(self.scores)
            for score in self.scores.values():
                if score.grad is not None:
                    score.grad += regularization_gradient(score, rate)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for score in self.scores.values():  # as DDP does with the weights' own gradients
                if score.grad is not None:
                    torch.distributed.all_reduce(score.grad)
                    score.grad /= torch.distributed.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def soft_masks(self, progress: float) -> dict[str, torch.Tensor]:
        """Keep the weights whose sigmoid(S) is above the threshold; (N, K) bool each.

        Args:
            progress: Of the schedule, in [0, 1]: how much of the threshold counts yet.
        """
        limit = progress * self.movement.threshold
        return {name: torch.sigmoid(score) > limit for name, score in self.scores.items()}

    def remember(self, name: str, weight: torch.Tensor, mask: torch.Tensor) -> None:
        """Note what an optimizer step made of the weights that are kept."""
        torch.where(mask, weight.detach(), self.dense[name], out=self.dense[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, for a checkpoint of the Trainer."""
        tensors = {f"dense.{name}": value for name, value in self.dense.items()}
        for name, score in self.scores.items():
            tensors[f"score.{name}"] = score
            for key, value in self.optimizer.state.get(score, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` returned."""
        for name, score in self.scores.items():
            score.copy_(tensors[f"score.{name}"])
            self.dense[name].copy_(tensors[f"dense.{name}"])
            self.optimizer.state[score] = {
                key: tensors[f"{key}.{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }


def initial_scores(weight: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Score weights (N, K) before anything is learnt: `magnitude · |W| / std(W)`, float32."""
    if magnitude == 0.0:
        return torch.zeros_like(weight, dtype=torch.float32)
    size = weight.float().abs()
    return size * (magnitude / weight.float().std().clamp(min=torch.finfo(torch.float32).tiny))


def regularization_gradient(score: torch.Tensor, rate: float) -> torch.Tensor:
    """Differentiate `rate · mean(sigmoid(S))`: (N, K) -> (N, K)."""
    share = torch.sigmoid(score)
    return rate / score.numel() * share * (1.0 - share)
