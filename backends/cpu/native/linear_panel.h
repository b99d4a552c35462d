// What a panel's lines are worth: each kind of weight, decoded to float lanes in registers.
#pragma once

#include <type_traits>

#include "lanes.h"
#include "linear.h"

namespace infercore::INFERCORE_ISA {

constexpr int VECTORS = PANEL / WIDTH;  // that one column of a panel takes

// table[index % 16] of every lane.
struct Table {
    explicit Table(const float* values) {
#if defined(__AVX512F__)
        low = load(values);
#elif defined(__AVX2__)
        low = load(values);
        high = load(values + 8);
#else
        low = values;
#endif
    }

    Floats operator[](Words index) const {
#if defined(__AVX512F__)
        return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)low);
#elif defined(__AVX2__)
        const __m256 below = _mm256_permutevar8x32_ps((__m256)low, (__m256i)index);
        const __m256 above = _mm256_permutevar8x32_ps((__m256)high, (__m256i)index);
        // bit 3 of the index, moved to the sign
        return (Floats)_mm256_blendv_ps(below, above, (__m256)(index << 28));
#else
        Floats found;
        for (int i = 0; i < WIDTH; ++i) found[i] = low[index[i] & 15];
        return found;
#endif
    }

#if defined(__AVX512F__)
    Floats low;
#elif defined(__AVX2__)
    Floats low, high;
#else
    const float* low;
#endif
};

// What a weight meets: a number of x, or two bfloat16 of it.
template <int KIND>
struct Meets {
    using Number = float;
    using Lanes = Floats;
};
template <>
struct Meets<PAIRS> {
    using Number = uint32_t;
    using Lanes = Words;
};

inline Words splat(uint32_t x) { return Words{} + x; }

inline Floats multiply_add(Floats w, Floats x, Floats sum) { return fma(w, x, sum); }

// Two products of bfloat16 to each sum. The emulation rounds between them, the instruction not
// always in the same way.
inline Floats multiply_add(Words w, Words x, Floats sum) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    sum = fma(floats(w & 0xffff0000), floats(x & 0xffff0000), sum);
    return fma(floats(w << 16), floats(x << 16), sum);
#endif
}

// Scales from number `at` on.
inline Floats scales_at(const LinearWeight& weight, int64_t at) {
    if (weight.scale_kind == BFLOAT16)
        return load(static_cast<const BFloat16*>(weight.scales) + at);
    if (weight.scale_kind == FLOAT16) return load(static_cast<const Float16*>(weight.scales) + at);
    return load(static_cast<const float*>(weight.scales) + at);
}

inline Floats converted(Words codes) { return __builtin_convertvector((Ints)codes, Floats); }

// Zero points from number `at` on.
template <int KIND>
inline Floats zeros_at(const LinearWeight& weight, int64_t at) {
    using Number = std::conditional_t<KIND == INT4, uint8_t, uint16_t>;
    using Numbers = std::conditional_t<KIND == INT4, Bytes, Halves>;
    const Numbers zeros = unaligned<Numbers>(static_cast<const Number*>(weight.zeros) + at);
    return converted(__builtin_convertvector(zeros, Words));
}

template <int KIND>
class Panel {
  public:
    static constexpr int STEPS = steps(KIND);
    static constexpr bool GROUPED = KIND >= INT8 && KIND <= CODEBOOK4;

    Panel() = default;

    Panel(const LinearWeight& weight, int panel)
        : lines_(weight.panels + (int64_t)panel * weight.lines * LINE_BYTES), weight_(&weight) {
        if constexpr (GROUPED) first_scale_ = (int64_t)panel * weight.groups * PANEL;
    }

    // Of columns decoded before, or from some line on.
    explicit Panel(const void* lines) : lines_(static_cast<const uint8_t*>(lines)) {}

    const void* at(int line) const { return lines_ + (int64_t)line * LINE_BYTES; }

    // Takes the scales of `line`, and says before which line they end. Lines only rise.
    int enter(int line, int stop) {
        if constexpr (GROUPED) {
            while (weight_->group_start[group_ + 1] <= line) ++group_;
            const int64_t at = first_scale_ + (int64_t)group_ * PANEL;
            for (int i = 0; i < VECTORS; ++i) {
                scale_[i] = scales_at(*weight_, at + i * WIDTH);
                if constexpr (KIND != CODEBOOK4)
                    offset_[i] = zeros_at<KIND>(*weight_, at + i * WIDTH) * -scale_[i];
            }
            const int end = weight_->group_start[group_ + 1];
            return end < stop ? end : stop;
        }
        return stop;
    }

    // Vector i of column `step` of a line.
    typename Meets<KIND>::Lanes get(int line, int step, int i) const {
        const uint8_t* at = lines_ + (int64_t)line * LINE_BYTES;
        [[maybe_unused]] const int shift = step < 4 ? 8 * step : 8 * step - 28;
        if constexpr (KIND == FLOAT16) {
            return load(reinterpret_cast<const Float16*>(at) + step * PANEL + i * WIDTH);
        } else {
            const Words words = unaligned<Words>(at + i * WIDTH * 4);
            if constexpr (KIND == PAIRS)
                return words;
            else if constexpr (KIND == BFLOAT16)
                return floats(step == 0 ? words << 16 : words & 0xffff0000);
            else if constexpr (KIND == INT8)
                return fma(converted(words >> 8 * step & 255), scale_[i], offset_[i]);
            else if constexpr (KIND == INT4)
                return fma(converted(words >> shift & 15), scale_[i], offset_[i]);
            else if constexpr (KIND == CODEBOOK4)
                return Table(weight_->table)[words >> shift] * scale_[i];
            else
                return floats(words);
        }
    }

    // The line some way behind this one, so that it is in the cache by then.
    void prefetch(int line, int ahead) const {
        __builtin_prefetch(lines_ + (int64_t)(line + ahead) * LINE_BYTES);
    }

    // Lines [start, stop) as float32 [(stop − start) · STEPS][16].
    void decode(int start, int stop, float* out) {
        for (int line = start; line < stop;) {
            const int end = enter(line, stop);
            for (; line < end; ++line) {
#pragma GCC unroll 8
                for (int step = 0; step < STEPS; ++step, out += PANEL)
#pragma GCC unroll 4
                    for (int i = 0; i < VECTORS; ++i) store(out + i * WIDTH, get(line, step, i));
            }
        }
    }

  private:
    const uint8_t* lines_ = nullptr;
    const LinearWeight* weight_ = nullptr;
    int64_t first_scale_ = 0;
    int group_ = 0;
    Floats scale_[GROUPED ? VECTORS : 1], offset_[GROUPED ? VECTORS : 1];
};

}  // namespace infercore::INFERCORE_ISA
