"""How sparse a model shall be at a time of its training."""


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
