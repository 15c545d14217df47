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


cdef fill_group(group_t *g, group, const int32_t[:, ::1] ids, const int32_t[:, ::1] types,
                const int32_t[:, ::1] positions, float[:, :, ::1] out, bint first_token_only):
    """Lay a Group out in the C structure; return the arrays that own its memory."""
    cdef int num_texts = len(group.texts), num_tiles = group.tiles, i, t, b, lane = 0, n
    cdef int32_t[:, ::1] text = np.zeros((4, num_texts), np.int32)
    cdef int32_t[:, ::1] token = np.zeros((3, num_tiles * TILE), np.int32)
    # position 0 of 16 texts shares a tile, so that there are no more of those than of texts' own tiles
    cdef uintptr_t[::1] rows = np.zeros(num_tiles * TILE, np.uintp)
    cdef const int64_t[::1] lanes
    g.num_texts, g.num_tiles = num_texts, num_tiles
    g.first_tile, g.tiles, g.keys = <int *>&text[0, 0], <int *>&text[1, 0], <int *>&text[2, 0]
    g.first_lane = <int *>&text[3, 0]
    g.ids, g.positions, g.types, g.rows = &token[0, 0], &token[1, 0], &token[2, 0], <float **>&rows[0]
    for i in range(num_texts):
        lanes = group.lanes[i]
        b = group.texts[i]
        n = <int>lanes.shape[0]
        g.first_tile[i], g.tiles[i], g.keys[i] = lane // TILE, (n + TILE - 1) // TILE, group.keys[i]
        for t in range(n):
            g.ids[lane + t] = ids[b, lanes[t]]
            g.positions[lane + t] = positions[b, lanes[t]]
            g.types[lane + t] = types[b, lanes[t]]
            if not first_token_only:
                rows[lane + t] = <uintptr_t>&out[b, lanes[t], 0]
            elif lanes[t] == 0:
                g.first_lane[i], rows[i] = lane + t, <uintptr_t>&out[b, 0, 0]
        for t in range(n, g.tiles[i] * TILE):
            g.ids[lane + t] = -1
        lane += g.tiles[i] * TILE
    return text, token, rows
