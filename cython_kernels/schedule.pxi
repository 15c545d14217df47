# Which texts of a call go together, and how they lie in tiles.


class Group:
    """Texts of one group: lists `texts` (row of the batch) and `lanes` (its token positions, keys first)."""

    def __init__(self):
        self.texts, self.lanes, self.keys, self.tiles, self.most_keys = [], [], [], 0, 0

    def add(self, text, lanes, keys):
        self.texts.append(text)
        self.lanes.append(lanes)
        self.keys.append(keys)
        self.tiles += (len(lanes) + TILE - 1) // TILE
        self.most_keys = max(self.most_keys, keys)


class Schedule:
    """Texts spread over groups, and whether one team of all threads takes them.

    Every thread gets the same number of groups of nearly equal size (longest texts first, each to the emptiest
    group); if that cannot be balanced, all threads share each group.
    """

    def __init__(self, mask, int num_threads, int group_tiles):
        texts = []
        tokens_of = np.asarray(mask) != 0
        full = tokens_of.all(1)
        everything = np.arange(tokens_of.shape[1])
        for b in range(tokens_of.shape[0]):
            lanes = everything if full[b] else np.flatnonzero(tokens_of[b])
            keys = len(lanes)
            if lanes[0] != 0:
                lanes = np.append(lanes, 0)  # poolers read position 0 even where it is masked: it asks, unattended
            texts.append(((len(lanes) + TILE - 1) // TILE, b, lanes, keys))
        texts.sort(key=lambda text: -text[0])
        self.tiles = total = sum(text[0] for text in texts)
        rounds = max(1, -(-total // (num_threads * group_tiles)))
        self.groups = self.fill(texts, num_threads * rounds)
        loads = [0] * num_threads
        for i, group in enumerate(self.groups):
            loads[i % num_threads] += group.tiles
        self.is_team = num_threads > 1 and max(loads) * num_threads > 1.15 * total
        if self.is_team:
            self.groups = self.fill(texts, max(1, -(-total // (2 * group_tiles))))

    @staticmethod
    def fill(texts, count):
        groups = [Group() for _ in range(count)]
        for _, b, lanes, keys in texts:
            min(groups, key=lambda group: group.tiles).add(b, lanes, keys)
        return [group for group in sorted(groups, key=lambda group: -group.tiles) if group.texts]
