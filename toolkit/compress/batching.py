"""Batches of texts of like length: less padding, and so fewer multiplications per text."""

from collections.abc import Iterator, Sequence

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

    Random numbers come from torch's global generator, which the Trainer seeds.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # of its own, so that what is drawn while training does not depend on the order here
        generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
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
