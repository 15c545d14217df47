# Weights of which only the nonzeros are stored, back in full.


cdef extern from *:
    """
    /* Put `values` where a bit is set, in order; elsewhere `out` stays. Returns how many bits are set, or -1 if they
     * are more than the values, or one lies beyond `count`. Inlined for each size: a copy is one instruction. */
    static inline int64_t expand_of_size(const uint8_t *bits, int64_t count, const uint8_t *values, int64_t num_values,
                                         const size_t size, uint8_t *out) {
        int64_t used = 0;
        for (int64_t first = 0; first < count; first += 64) {
            const int64_t left = (count - first + 7) / 8;
            uint64_t word = 0;
            memcpy(&word, bits + first / 8, left < 8 ? (size_t)left : 8);
            for (; word; word &= word - 1, used++) {
                const int64_t at = first + __builtin_ctzll(word);
                if (used == num_values || at >= count) return -1;
                memcpy(out + (size_t)at * size, values + (size_t)used * size, size);
            }
        }
        return used;
    }
    static int64_t expand_bits(const uint8_t *bits, int64_t count, const uint8_t *values, int64_t num_values, int size,
                               uint8_t *out) {
        return size == 4   ? expand_of_size(bits, count, values, num_values, 4, out)
               : size == 2 ? expand_of_size(bits, count, values, num_values, 2, out)
                           : expand_of_size(bits, count, values, num_values, 1, out);
    }
    """
    int64_t expand_bits(const uint8_t *bits, int64_t count, const uint8_t *values, int64_t num_values, int size,
                        uint8_t *out) noexcept nogil


def expand(const uint8_t[::1] bits, Py_ssize_t count, values):
    """An array (count,) of `values` where a bit is set, and of zeros elsewhere."""
    cdef int size = values.dtype.itemsize
    cdef const uint8_t[::1] stored = values.view(np.uint8)
    cdef int64_t num_values = stored.shape[0] // size, used = 0
    if size not in (1, 2, 4) or bits.shape[0] != (count + 7) // 8:
        raise ValueError(f"expected 1, 2 or 4 bytes a value and {(count + 7) // 8} bytes of bits; "
                         f"got {size} and {bits.shape[0]}")
    result = np.zeros(count, values.dtype)
    cdef uint8_t[::1] out = result.view(np.uint8)
    if count:
        with nogil:
            used = expand_bits(&bits[0], count, &stored[0] if num_values else NULL, num_values, size, &out[0])
    if used != num_values:
        raise ValueError(f"expected a bit for each of {num_values} values, at one of {count} places")
    return result
