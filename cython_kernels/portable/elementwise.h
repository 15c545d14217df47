/* Activations and LayerNorm. Included by portable.h. */

/* 2^x for x <= 127; below -126 it returns 2^-126, which sums of softmax lose. Degree-5 minimax of 2^f on
 * [-1/2, 1/2]; relative error below 3e-7, rounding included. */
INLINE VF SYM(exp2)(VF x) {
    x = SYM(max)(SYM(splat)(-126.0f), x); /* this order hands a NaN on */
    const VF magic = SYM(splat)(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const VF shifted = x + magic;
    const VF f = x - (shifted - magic);
    VF p = SYM(splat)(0.0013276472454890609f);
    p = p * f + 0.009675541892647743f;
    p = p * f + 0.05550713092088699f;
    p = p * f + 0.24022120237350464f;
    p = p * f + 0.6931469440460205f;
    p = p * f + 1.0000001192092896f;
    return (VF)((VI)p + ((VI)shifted << 23));
}

/* x * Phi(x), Phi(x) = 1/2 + x P(x^2) with x clamped to +-5.5 inside; P is a degree-13 minimax polynomial in
 * u = 2 x^2 / 5.5^2 - 1, whose coefficients keep their float32 accuracy where powers of x^2 lose it. */
static void SYM(f32_gelu)(float *x, size_t count) {
    static const float c[14] = {0.12855194509029388f,   -0.06417197734117508f,  0.047735605388879776f,
                                -0.03880469501018524f,  0.03211359307169914f,   -0.025941897183656693f,
                                0.020029546692967415f,  -0.015373255126178265f, 0.011425280012190342f,
                                -0.006292717065662146f, 0.0024753392208367586f, -0.002518210094422102f,
                                0.0025922644417732954f, -0.0009117480367422104f};
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        const VF b = SYM(clamp)(a, 5.5f);
        const VF u = b * b * (2.0f / 30.25f) - 1.0f;
        VF p = SYM(splat)(c[13]);
        for (int j = 12; j >= 0; j--) p = p * u + c[j];
        SYM(store)(x + i, a * (b * p + 0.5f));
    }
}

/* x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))), which equals the tanh form. */
static void SYM(f32_gelu_tanh)(float *x, size_t count) {
    const float c = -2.302208198f; /* -2 sqrt(2/pi) log2(e) */
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        const VF e = SYM(min)(SYM(splat)(120.0f), (a * a * 0.044715f + 1.0f) * a * c);
        SYM(store)(x + i, a / (SYM(exp2)(e) + 1.0f));
    }
}

static void SYM(f32_relu)(float *x, size_t count) {
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        SYM(store)(x + i, SYM(select)(a < SYM(splat)(0.0f), SYM(splat)(0.0f), a));
    }
}

static void SYM(f32_layer_norm)(float *x, const float *bias, const norm_t *norm, float *y) {
    const float *gamma = norm->gamma, *beta = norm->beta;
    const float epsilon = norm->epsilon;
    const int features = norm->features;
    VF mean[VECTORS], scale[VECTORS];
    for (int v = 0; v < VECTORS; v++) mean[v] = scale[v] = SYM(splat)(0.0f);
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            float *p = x + f * TILE + v * LANES;
            VF a = SYM(load)(p);
            if (bias) {
                a += bias[f];
                SYM(store)(p, a);
            }
            mean[v] += a;
        }
    for (int v = 0; v < VECTORS; v++) mean[v] /= (float)features;
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            const VF d = SYM(load)(x + f * TILE + v * LANES) - mean[v];
            scale[v] += d * d;
        }
    for (int v = 0; v < VECTORS; v++)
        for (int lane = 0; lane < LANES; lane++)
            scale[v][lane] = 1.0f / __builtin_sqrtf(scale[v][lane] / (float)features + epsilon);
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            const VF a = SYM(load)(x + f * TILE + v * LANES);
            SYM(store)(y + f * TILE + v * LANES, (a - mean[v]) * scale[v] * gamma[f] + beta[f]);
        }
}
