// Sums of products of codes: those of a panel's line, 0 … 255, with those of x, −127 … 127.
//
// The form of x's codes is the instruction set's:
//   AVX-512, portable  int8, in the order of the columns; four at a time meet a word of a line
//   AVX2, INT4         the same
//   AVX2, else         int16, of every four columns the first, third, second, fourth: the bytes of
//                      a word are widened in place, even ones and odd ones
// AVX2 multiplies bytes only into sums of 16 bits. Products of INT4 fit, (15 · 127) · 2 · 8; those
// of 8-bit codes do not.
#pragma once

#include "lanes.h"
#include "linear.h"

namespace infercore::INFERCORE_ISA {

typedef int16_t Shorts __attribute__((vector_size(WIDTH * 2)));

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool WIDENS = true;
#else
constexpr bool WIDENS = false;
#endif

// Bytes of one code of x.
constexpr int code_width(int32_t kind) { return WIDENS && kind != INT4 ? 2 : 1; }

// Whole codes to the form that lines of `kind` meet. count: a multiple of 4.
inline void write_codes(const int16_t* from, int count, int32_t kind, int8_t* to) {
    if (code_width(kind) == 1) {
        for (int i = 0; i < count; ++i) to[i] = (int8_t)from[i];
        return;
    }
    for (int i = 0; i < count; i += 4) {
        uint64_t four;
        std::memcpy(&four, from + i, sizeof four);
        const uint64_t swapped = (four & 0xffff00000000ffff) | (four & 0xffff0000) << 16 |
                                 (four >> 16 & 0xffff0000);
        std::memcpy(to + 2 * i, &swapped, sizeof swapped);
    }
}

// A line of one kind of weight: parts of four columns, each as `WIDER` pieces, which meet a word of
// x apiece.
template <int KIND>
struct Codes {
    static constexpr int PARTS = KIND == INT8 ? 1 : 2;
    static constexpr int WIDER = code_width(KIND);
    static constexpr int WORDS = PARTS * WIDER;  // of x that meet a line
    // Lines whose products fit into sums of 16 bits; 0 where sums have 32.
    static constexpr int NARROW_LINES = WIDENS && KIND == INT4 ? 4 : 0;

    explicit Codes(const LinearWeight& weight) {
        if constexpr (KIND == CODEBOOK4) bytes = weight.bytes;
    }

    // Codes of 0 … 255 of four columns.
    Words part(Words word, int part) const {
        if constexpr (KIND == INT8) return word;
        return worth((part == 0 ? word : word >> 4) & 0x0f0f0f0f);
    }

    void widened(Words part, Words (&out)[WIDER]) const {
        if constexpr (WIDER == 2) {
            typedef uint16_t Cells __attribute__((vector_size(WIDTH * 4)));
            out[0] = part & 0x00ff00ff;
            out[1] = (Words)((Cells)part >> 8);
        } else {
            out[0] = part;
        }
    }

  private:
    Words worth(Words cells) const {
        if constexpr (KIND != CODEBOOK4) return cells;
#if defined(__AVX512F__)
        const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)bytes));
        return (Words)_mm512_shuffle_epi8(table, (__m512i)cells);
#elif defined(__AVX2__)
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes));
        return (Words)_mm256_shuffle_epi8(table, (__m256i)cells);
#else
        Words found = {};
        for (int i = 0; i < WIDTH; ++i)
            for (int shift = 0; shift < 32; shift += 8)
                found[i] |= (uint32_t)bytes[cells[i] >> shift & 15] << shift;
        return found;
#endif
    }

    const uint8_t* bytes = nullptr;
};

// sum + the products of a piece with a word of x, in sums of 16 bits where Codes has narrow lines.
template <int KIND>
inline Ints add_products(Ints sum, Words piece, uint32_t x) {
#if defined(__AVX512F__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)piece, _mm512_set1_epi32((int)x));
#elif defined(__AVX2__)
    const __m256i codes = _mm256_set1_epi32((int)x);
    if constexpr (Codes<KIND>::NARROW_LINES > 0)
        return (Ints)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)piece, codes));
    return sum + (Ints)_mm256_madd_epi16((__m256i)piece, codes);
#else
    for (int shift = 0; shift < 32; shift += 8)
        sum += (Ints)(piece >> shift & 255) * (int32_t)(int8_t)(x >> shift & 255);
    return sum;
#endif
}

// Sums of 16 bits, two by two, to 32.
inline Ints widened_sums(Ints narrow) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (Ints)_mm256_madd_epi16((__m256i)narrow, _mm256_set1_epi16(1));
#else
    return narrow;
#endif
}

}  // namespace infercore::INFERCORE_ISA
