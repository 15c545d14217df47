"""In which order the units of a layer go, and what that costs: the layer-wise inverse Hessian.

N: outputs, K: inputs of a linear layer; a unit is some neighbouring inputs: a head, or one neuron.
"""

from typing import NamedTuple

import torch

# Part of the inputs' mean square that is added to the diagonal: keeps the inverse of inputs that
# hardly vary in check.
DAMPING = 0.01


class RemovalPath(NamedTuple):
    """The way from a whole layer to its last units.

    Attributes:
        order: Units as they go, and at the end those that never do.
        errors: Error after as many steps, `errors[0]` = 0: the squared distance of the layer's
            output from the original one, mean over the tokens, once what remains has been fitted.
    """

    order: list[int]
    errors: list[float]


def removal_path(
    weight: torch.Tensor, gram: torch.Tensor, unit: int, per_step: int, least: int
) -> RemovalPath:
    """Remove units one after the other, always those that are missed least.

    With H = E[x xᵀ] + damping and S the inputs of a unit, the error grows by
    `tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ)` when the others are fitted: `W -= W_S (H⁻¹_SS)⁻¹ H⁻¹_S`, and
    `H⁻¹ -= H⁻¹_:S (H⁻¹_SS)⁻¹ H⁻¹_S:` is the inverse without S. The bias is fitted, too: it is the
    weight of an input that is always 1.

    Args:
        weight: (N, K); its rows multiplied by √s weigh the outputs' errors by s.
        gram: (K + 1, K + 1) mean of x xᵀ over the tokens, x (K + 1,) with a 1 at its end.
        unit: Inputs of a unit, which divides K.
        per_step: Units that go at once, between two looks at the scores.
        least: Units that never go, at least 1.

    Source: Kurtic et al. 2023, "ZipLM: inference-aware structured pruning of language models",
        algorithm 1, https://arxiv.org/abs/2302.04089.
    """
    w = torch.cat([weight, weight.new_zeros(len(weight), 1)], 1).double()  # (N, K + 1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram.double())))
    units = list(range(weight.shape[1] // unit))
    order: list[int] = []
    errors = [0.0]
    while len(units) > least:
        count = len(units) * unit
        groups = w[:, :count].reshape(len(w), len(units), unit).permute(1, 0, 2)  # (units, N, u)
        blocks = inverse[:count, :count].reshape(len(units), unit, len(units), unit)
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (units, u, u)
        scores = (torch.linalg.solve(blocks, groups.mT) * groups.mT).sum((1, 2))
        going = scores.argsort(stable=True)[: min(per_step, len(units) - least)]
        at = (going[:, None] * unit + torch.arange(unit)).flatten()
        solved = torch.linalg.solve(inverse[at][:, at], inverse[at])  # (H⁻¹_SS)⁻¹ H⁻¹_S:
        grown = (torch.linalg.solve(inverse[at][:, at], w[:, at].T) * w[:, at].T).sum()
        errors.append(errors[-1] + float(grown))
        stay = torch.ones(len(w[0]), dtype=torch.bool)
        stay[at] = False
        w = (w - w[:, at] @ solved)[:, stay]
        inverse = inverse.addmm_(inverse[:, at], solved, alpha=-1)[stay][:, stay]
        gone = set(going.tolist())
        order += [units[i] for i in going.tolist()]
        units = [name for i, name in enumerate(units) if i not in gone]
    return RemovalPath(order + units, errors)


def damped(gram: torch.Tensor) -> torch.Tensor:
    """Add `DAMPING` times the inputs' mean square to the diagonal, but for the constant's."""
    penalty = torch.full((len(gram),), DAMPING * float(gram.diagonal()[:-1].mean()))
    penalty[-1] = 0.0
    return gram + torch.diag(penalty).to(gram)
