// Elementary functions of float lanes: minimax polynomials, fitted for these intervals.
//
// Errors, as the tests hold them over the whole range: exp 1.5 units in the last place, tanh 3,
// erfc 2e-7 of 1 and 4e-6 of itself.
#pragma once

#include "lanes.h"

namespace infercore::INFERCORE_ISA {

// 2^n for n in [-126, 127].
inline Floats exp2_of(Ints n) { return floats((Words)((n + 127) << 23)); }

// e^x over all floats: overflows to infinity, underflows through the subnormal numbers.
inline Floats exp(Floats x) {
    const float shift = 0x1.8p23f;  // a float this large has no fraction: adding it rounds
    x = x > 89.0f ? splat(89.0f) : x;
    x = x < -104.0f ? splat(-104.0f) : x;
    const Floats shifted = fma(x, splat(0x1.715476p0f), splat(shift));  // x / ln 2
    const Floats whole = shifted - shift;
    // x - whole · ln 2, in two parts
    const Floats r = fma(whole, splat(-0x1.7f7d1cp-20f), fma(whole, splat(-0x1.62e4p-1f), x));
    Floats q = splat(0x1.6a2434p-10f);
    q = fma(q, r, splat(0x1.1239e2p-7f));
    q = fma(q, r, splat(0x1.5558f2p-5f));
    q = fma(q, r, splat(0x1.555492p-3f));
    q = fma(q, r, splat(0x1.fffffcp-2f));
    const Floats y = fma(q, r * r, r) + 1.0f;
    const Ints n = (Ints)bits(shifted) - 0x4b400000;
    const Ints half = n >> 1;  // two factors, since one cannot hold -149 or 128
    return y * exp2_of(half) * exp2_of(n - half);
}

inline Floats tanh(Floats x) {
    const Floats magnitude = floats(bits(x) & 0x7fffffff), square = x * x;
    Floats q = splat(-0x1.76ac1ap-8f);
    q = fma(q, square, splat(0x1.5256d8p-6f));
    q = fma(q, square, splat(-0x1.b84448p-5f));
    q = fma(q, square, splat(0x1.110768p-3f));
    q = fma(q, square, splat(-0x1.555534p-2f));
    const Floats small = fma(q * square, x, x);
    const Floats large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
    const Floats signed_large = floats(bits(large) | (bits(x) & 0x80000000));
    return magnitude < 0.625f ? small : signed_large;
}

// 1 - erf(t) for t ≥ 0; 0 from 4 on, where it is under half an ulp of 1.
inline Floats erfc(Floats t) {
    const Floats square = t * t;
    Floats q = splat(0x1.496a3p-14f);
    q = fma(q, square, splat(-0x1.a3f7p-11f));
    q = fma(q, square, splat(0x1.5405b2p-8f));
    q = fma(q, square, splat(-0x1.b7f90ep-6f));
    q = fma(q, square, splat(0x1.ce2cf8p-4f));
    q = fma(q, square, splat(-0x1.81273ep-2f));
    q = fma(q, square, splat(0x1.20dd74p0f));
    Floats log = splat(-0x1.323b92p-20f);  // -ln erfc(t) / t
    log = fma(log, t, splat(0x1.2f5316p-15f));
    log = fma(log, t, splat(-0x1.0cc6e6p-11f));
    log = fma(log, t, splat(0x1.1ddff4p-8f));
    log = fma(log, t, splat(-0x1.9e3accp-6f));
    log = fma(log, t, splat(0x1.ba9c08p-4f));
    log = fma(log, t, splat(0x1.449adp-1f));
    log = fma(log, t, splat(0x1.2102f2p0f));
    const Floats tail = t < 4.0f ? exp(-t * log) : Floats{};
    return t < 1.0f ? fma(-q, t, splat(1.0f)) : tail;
}

}  // namespace infercore::INFERCORE_ISA
