"""Which texts of a call go together, and how many threads take them. B texts, T positions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cython_kernels._kernels import TILE_TOKENS

BALANCE = 1.15  # times the mean that the fullest thread may have, or all threads share each group


class Text(NamedTuple):
    """One text.

    Attributes:
        row: Of the batch.
        lanes: Its token positions, int64, those attended to first.
        keys: How many of them are attended to.
        tiles: Tiles of 16 tokens that they fill.
    """

    row: int
    lanes: NDArray[np.int64]
    keys: int
    tiles: int


class Group:
    """Texts that go through the encoder together.

    Attributes:
        texts, lanes, keys: Per text its row of the batch, its token positions, and how many of
            these are attended to: the first ones.
        tiles: Tiles that the texts fill.
    """

    def __init__(self) -> None:
        self.texts: list[int] = []
        self.lanes: list[NDArray[np.int64]] = []
        self.keys: list[int] = []
        self.tiles = 0

    def add(self, text: Text) -> None:
        """Take one text more."""
        self.texts.append(text.row)
        self.lanes.append(text.lanes)
        self.keys.append(text.keys)
        self.tiles += text.tiles


class Schedule:
    """Texts spread over groups, and whether one team of all threads takes them.

    Every thread gets the same number of groups of nearly equal size (longest texts first, each to
    the emptiest group); if that cannot be balanced, all threads share each group.

    Attributes:
        groups: The fullest first.
        is_team: All threads share each group.
    """

    def __init__(self, mask: NDArray[Any], num_threads: int, group_tiles: int) -> None:
        """Schedule one call.

        Args:
            mask: (B, T), not 0 where there is a token.
            num_threads: Threads of the call, >= 1.
            group_tiles: Tiles that a group has at most, unless a single text is longer; >= 1.

        Raises:
            ValueError: A text without any token.
        """
        texts = texts_of(mask)
        total = sum(text.tiles for text in texts)
        rounds = max(1, -(-total // (num_threads * group_tiles)))
        self.groups = fill(texts, num_threads * rounds)
        loads = [0] * num_threads
        for i, group in enumerate(self.groups):
            loads[i % num_threads] += group.tiles
        self.is_team = num_threads > 1 and max(loads) * num_threads > BALANCE * total
        if self.is_team:
            self.groups = fill(texts, max(1, -(-total // (2 * group_tiles))))


def texts_of(mask: NDArray[Any]) -> list[Text]:
    """List the texts of a batch, the longest first.

    Raises:
        ValueError: A text without any token.
    """
    is_token = mask != 0
    if not is_token.size:
        return []
    texts, everything = [], np.arange(mask.shape[1])
    for row, is_full in enumerate(is_token.all(1).tolist()):
        lanes = everything if is_full else np.flatnonzero(is_token[row])
        keys = len(lanes)
        if keys == 0:
            raise ValueError(f"attention_mask[{row}] must have at least one 1; got a row of zeros")
        if lanes[0] != 0:
            # poolers read position 0 even where it is masked: it asks, unattended
            lanes = np.append(lanes, 0)
        texts.append(Text(row, lanes, keys, -(-len(lanes) // TILE_TOKENS)))
    return sorted(texts, key=lambda text: -text.tiles)


def fill(texts: list[Text], count: int) -> list[Group]:
    """Spread texts, longest first, over at most `count` groups."""
    groups = [Group() for _ in range(count)]
    for text in texts:
        min(groups, key=lambda group: group.tiles).add(text)
    return [group for group in sorted(groups, key=lambda group: -group.tiles) if group.texts]
