"""How sparse a model shall be, and how fast it shall learn, at a time of its training."""

from bisect import bisect_right
from collections.abc import Sequence

from toolkit.config import Schedule


def sparsity_at(
    time: float,
    start: float,
    end: float,
    initial_sparsity: float,
    final_sparsity: float,
    schedule: Schedule = Schedule.cubic,
    steps: Sequence[float] = (),
) -> float:
    """Compute the sparsity that a schedule asks for.

    With t rising from 0 to 1 between `start` and `end`: cubic is
    `s_f + (s_i - s_f) (1 - t)³`, fast at first, then ever slower; linear is `s_f + (s_i - s_f)
    (1 - t)`; stepwise jumps to `steps[i]` at t = i / (len(steps) - 1).

    Args:
        time: In steps or epochs, as `start` and `end`.
        start: Before it nothing is pruned.
        end: From here on it is exactly `final_sparsity`; not before `start`.
        initial_sparsity: At `start`, in [0, 1); of no meaning to stepwise.
        final_sparsity: In [0, 1).
        schedule: cubic, linear or stepwise.
        steps: Ascending sparsities, of stepwise alone.

    Returns:
        A fraction of zeros in [0, 1).

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1 (cubic).
    """
    if time < start:
        return 0.0
    if time >= end:
        return final_sparsity
    progress = (time - start) / (end - start)
    if schedule is Schedule.stepwise:
        # a step of training may fall just short of where a step of the schedule begins
        return steps[int(progress * (len(steps) - 1) + 1e-9)]
    power = 3 if schedule is Schedule.cubic else 1
    return final_sparsity + (initial_sparsity - final_sparsity) * (1.0 - progress) ** power


def rewound_rate(step: int, boundaries: Sequence[int], final_fraction: float) -> float:
    """Compute the learning rate's factor when it is set back at every mask update.

    It is 1 at each boundary and falls linearly towards `final_fraction` until the next.

    Args:
        step: Optimizer step, from 0.
        boundaries: Ascending steps: 0, every mask update, the end of training.
        final_fraction: In (0, 1].

    Source: Kurtic et al. 2022, "The Optimal BERT Surgeon", section 4 (cyclic schedule).
    """
    i = min(bisect_right(boundaries, step), len(boundaries) - 1)
    begin, end = boundaries[i - 1], boundaries[i]
    passed = min((step - begin) / max(end - begin, 1), 1.0)
    return 1.0 - passed * (1.0 - final_fraction)
