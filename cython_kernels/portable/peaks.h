/* What this ISA can do at most: the two loops that the roofline is measured with; kernels.h states what they compute.
 * Included by portable.h. */

/* Independent chains of multiply-adds: enough to hide their latency (4 cycles × 2 pipes, × 4 on the widest Arm cores),
 * few enough for the registers, of which x86-64 below AVX-512 has 16. Beyond 16 gcc does not unroll. */
#if LANES == 16 || defined(__aarch64__)
#define CHAINS 16
#else
#define CHAINS 12
#endif

static void SYM(f32_fma_loop)(float *x, float factor, size_t steps) {
    VF acc[CHAINS];
    const VF f = SYM(splat)(factor);
    for (int i = 0; i < CHAINS; i++) acc[i] = SYM(load)(x + i * LANES);
    for (; steps > 0; steps--)
        for (int i = 0; i < CHAINS; i++) acc[i] += acc[i] * f;
    for (int i = 0; i < CHAINS; i++) SYM(store)(x + i * LANES, acc[i]);
}

static uint32_t SYM(read_loop)(const float *x, size_t count, size_t times) {
    enum { LOADS = READ_FLOATS / TILE };
    VI acc[LOADS];
    for (int i = 0; i < LOADS; i++) acc[i] = (VI){0};
    for (; times > 0; times--) {
        const float *p = x;
        __asm__ volatile("" : "+r"(p)); /* or the compiler would read once and know the rest */
        for (const float *end = p + count; p < end; p += LOADS * LANES)
            for (int i = 0; i < LOADS; i++) acc[i] ^= *(const VI *)(p + i * LANES);
    }
    for (int i = 1; i < LOADS; i++) acc[0] ^= acc[i];
    uint32_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all ^= (uint32_t)acc[0][lane];
    return all;
}
