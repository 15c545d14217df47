"""How many units stay where: the smallest sum of errors within a budget of time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BUCKETS = 10_000  # parts of the budget; rounding up loses one part per module at most


def choose(
    costs: Sequence[ArrayLike], errors: Sequence[ArrayLike], budget: float
) -> list[int] | None:
    """Choose one option of every module: the multiple-choice knapsack, by dynamic programming.

    Args:
        costs: Per module what each option costs, >= 0, in any unit.
        errors: Per module the error of each option.
        budget: Largest sum of costs, > 0; costs are rounded up to a ten thousandth of it, so that
            it is never exceeded, and an optimum that needs the last of it may be missed.

    Returns:
        The number of each module's option; None if even the cheapest options exceed the budget.
    """
    best = np.zeros(BUCKETS + 1)  # smallest error with the modules so far within so many buckets
    taken: list[NDArray[np.intp]] = []
    steps = [np.ceil(np.asarray(cost) / budget * BUCKETS - 1e-9).astype(int) for cost in costs]
    for buckets, error in zip(steps, errors, strict=True):
        options = np.full((len(buckets), BUCKETS + 1), np.inf)
        for option, (part, value) in enumerate(zip(buckets, np.asarray(error), strict=True)):
            if part <= BUCKETS:
                options[option, part:] = best[: BUCKETS + 1 - part] + value
        taken.append(options.argmin(axis=0))
        best = options.min(axis=0)
    if not np.isfinite(best[BUCKETS]):
        return None
    left, chosen = BUCKETS, []
    for best_option, buckets in zip(reversed(taken), reversed(steps), strict=True):
        chosen.append(int(best_option[left]))
        left -= int(buckets[chosen[-1]])
    return chosen[::-1]
