"""Batches of texts of like length: less padding, and so fewer multiplications per text."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

# More batches sorted together save little padding. Of few examples at most a quarter is: batches of
# one length alone would all too often be batches of one label.
MOST_BATCHES, LARGEST_SHARE = 50, 1 / 4


class LikeLengths(Sampler[int]):
    """Draws all examples once, in an order whose consecutive batches hold texts of like length.

    Chunks of up to 50 batches, drawn at random, are sorted by length and cut into batches, whose
    order is then random again: in order of length, what goes with it (a label, say) would come and
    go in waves, as it does with the sampler of transformers.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples of one optimizer step, in all processes together.
        seed: Of the order, in 0…2³² - 1; the same in all processes.
        epoch: Tells the current epoch, which has an order of its own. A run that is resumed in an
            epoch finds the order with which that began.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # of a seed torch takes 32 bits; the step keeps epochs of neighbouring seeds apart
        seed = (self.seed + 0x9E3779B1 * self.epoch()) % 2**32
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches = []
        share = int(LARGEST_SHARE * len(order) / self.batch_size)
        for chunk in order.split(min(max(share, 1), MOST_BATCHES) * self.batch_size):
            chunk = chunk[self.lengths[chunk].argsort(stable=True)]
            batches += list(chunk.split(self.batch_size))
        # The one smaller batch comes last: whoever cuts the order into batches finds these.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = [full[i] for i in torch.randperm(len(full), generator=generator)]
        for batch in [*shuffled, *rest]:
            yield from batch.tolist()
