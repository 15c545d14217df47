/* IEEE half precision in plain C. */
#ifndef TOOLKIT_HALF_H
#define TOOLKIT_HALF_H

#include <stdint.h>
#include <string.h>

/* The nearest half, ties to even. What is too large becomes the largest one, not infinity: an activation of 70,000 is
 * rare and better cut than let loose. Infinity and NaN stay. */
static inline uint16_t half_of(float value) {
    uint32_t bits, magnitude;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x7f800000) return (uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (magnitude >= 0x477fe000) return (uint16_t)(sign | 0x7bff);
    if (magnitude < 0x38800000) { /* denormal: 2^-24 is what the sum with 1/2 is rounded to */
        float sum;
        memcpy(&sum, &magnitude, sizeof sum);
        sum += 0.5f;
        memcpy(&magnitude, &sum, sizeof sum);
        return (uint16_t)(sign | (magnitude - 0x3f000000));
    }
    return (uint16_t)(sign | (((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10)));
}

static inline float float_of(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
    float value = (float)mantissa * (1.0f / 16777216.0f);
    if (exponent == 0) return sign ? -value : value;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
