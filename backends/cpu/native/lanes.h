// Vectors of float lanes in the width of the instruction set that this file is compiled for.
//
// Plain arithmetic is the compiler's vector extension, so one source serves every set; what that
// does not offer (fused multiply-add, half precision) is a small wrapper here. Compile with
// -ffp-contract=off: a sum must round alike in every instance of a template, so products are fused
// where `fma` says so and nowhere else.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace infercore {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

namespace INFERCORE_ISA {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));
typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));

// Minus zero changes no number, −0 neither, so the compiler leaves only the broadcast.
inline Floats splat(float x) { return x - Floats{}; }
inline Words bits(Floats x) { return (Words)x; }
inline Floats floats(Words x) { return (Floats)x; }

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// Of numbers or of lanes; b where one of them is NaN.
template <class T>
inline T max(T a, T b) {
    return a > b ? a : b;
}
template <class T>
inline T min(T a, T b) {
    return a < b ? a : b;
}

// Pairwise, so the order of a sum is the width's and nothing else's.
inline float reduce_sum(Floats x) {
    float lane[WIDTH];
    std::memcpy(lane, &x, sizeof lane);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

inline float reduce_max(Floats x) {
    float lane[WIDTH];
    std::memcpy(lane, &x, sizeof lane);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = max(lane[i], lane[i + half]);
    return lane[0];
}

template <class Vector>
inline Vector unaligned(const void* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// float32 ↔ bfloat16, to nearest even; a NaN stays one.
inline Floats widen(Halves x, BFloat16) {
    return floats(__builtin_convertvector(x, Words) << 16);
}

inline Halves narrow(Floats x, BFloat16) {
    const Words word = bits(x);
    const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? rounded : (word >> 16) | 0x40, Halves);
}

// float32 ↔ float16 (IEEE 754 binary16), to nearest even.
inline Floats widen(Halves x, Float16) {
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)x);
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps((__m128i)x);
#else
    const Words half = __builtin_convertvector(x, Words);
    const Words magnitude = (half & 0x7fff) << 13;
    // 2^112 moves the exponent's bias from 15 to 127, also of subnormal numbers
    const Words finite = bits(floats(magnitude) * 0x1p112f);
    const Words moved = magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000 : finite;
    return floats(moved | (half & 0x8000) << 16);
#endif
}

inline Halves narrow(Floats x, Float16) {
#if defined(__AVX512F__)
    return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)x,
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Words word = bits(x), magnitude = word & 0x7fffffff;
    const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // adding 0.5 leaves a subnormal half's mantissa in the low bits, rounded
    const Words subnormal = bits(floats(magnitude) + 0.5f) - 0x3f000000;
    Words half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? Words{} + 0x7c00 : half;  // 65520 and more
    half = magnitude > 0x7f800000 ? (magnitude >> 13 & 0x3ff) | 0x7e00 : half;
    return __builtin_convertvector(half | (word >> 16 & 0x8000), Halves);
#endif
}

inline Floats load(const float* from) { return unaligned<Floats>(from); }
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

template <class T>
inline Floats load(const T* from) {
    return widen(unaligned<Halves>(from), T{});
}

template <class T>
inline void store(T* to, Floats x) {
    const Halves narrowed = narrow(x, T{});
    std::memcpy(to, &narrowed, sizeof narrowed);
}

// The first n < WIDTH lanes; those loaded beyond are 0.
template <class T>
inline Floats load_some(const T* from, int n) {
    T lane[WIDTH] = {};
    std::memcpy(lane, from, n * sizeof(T));
    return load(lane);
}

template <class T>
inline void store_some(T* to, Floats x, int n) {
    T lane[WIDTH];
    store(lane, x);
    std::memcpy(to, lane, n * sizeof(T));
}

inline float to_float(float x) { return x; }

template <class T>
inline float to_float(T x) {
    return load_some(&x, 1)[0];
}

}  // namespace INFERCORE_ISA
}  // namespace infercore
