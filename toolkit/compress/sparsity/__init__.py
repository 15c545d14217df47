"""Which weights become zero, and when: pure functions, then the callback that applies them.

A mask is 1 where a weight is kept. `sparsity` is a fraction of zeros in [0, 1).
"""
