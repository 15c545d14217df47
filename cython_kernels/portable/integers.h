/* What the dot products and the tile registers of 8-bit integers share. Included after vector.h. */

INLINE VI SYM(s8_splat)(const float *weight) {
    int32_t bits;
    memcpy(&bits, weight, sizeof bits);
    return bits - (VI){0};
}

/* start + float(sum) * x_scale * scale: every step rounded, so that all forms give the same bits. The compiler must not
 * fuse the last two. */
INLINE VF SYM(s8_scaled)(VI sum, VF x_scale, float scale, VF start) {
    VF product = __builtin_convertvector(sum, VF) * x_scale * scale;
#if defined(__x86_64__) && LANES == 16
    __asm__("" : "+v"(product));
#elif defined(__x86_64__)
    __asm__("" : "+x"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#endif
    return product + start;
}
