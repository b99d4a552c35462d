// Rows of x to int8, a scale per block: largest magnitude / 127, codes to the nearest even.
#include "linear_dot.h"

namespace infercore::INFERCORE_ISA {
namespace {

// 1.5 · 2²³: a float32 of this size has no fraction, so adding it rounds to a whole number.
constexpr float WHOLE = 12582912.0f;
constexpr int32_t WHOLE_BITS = 0x4b400000;
constexpr float LEAST = 1e-30f;  // below, 127 / magnitude would overflow: the block is zero
constexpr uint32_t INFINITE = 0x7f800000;

// The columns that meet lines [start, stop), then zeros up to a whole vector. Returns how many.
template <class T>
int gather(const LinearWeight& weight, const T* x, int start, int stop, float* out) {
    const int first = start * steps(weight.kind), count = stop * steps(weight.kind) - first;
    if (weight.columns != nullptr) {
        for (int i = 0; i < count; ++i) {
            const int column = weight.columns[first + i];
            out[i] = column < 0 ? 0 : to_float(x[column]);
        }
    } else {
        const int there = min(count, weight.k - first);
        int i = 0;
        for (; i + WIDTH <= there; i += WIDTH) store(out + i, load(x + first + i));
        if (i < there) store(out + i, load_some(x + first + i, there - i));
        for (int j = there; j < count; ++j) out[j] = 0;
    }
    for (int i = count; i % WIDTH != 0; ++i) out[i] = 0;
    return count;
}

// Bits of the largest magnitude: as whole numbers, so that a NaN is the largest.
uint32_t magnitude(const float* x, int count) {
    Ints most = {};
    for (int i = 0; i < count; i += WIDTH) {
        const Ints bits = (Ints)load(x + i) & 0x7fffffff;
        most = most > bits ? most : bits;
    }
    int32_t found = 0;
    for (int i = 0; i < WIDTH; ++i) found = max<int32_t>(found, most[i]);
    return (uint32_t)found;
}

struct Block {
    float scale, sum;
};

// x [count] → codes, in the form that lines of `kind` meet.
Block round_block(const float* x, int count, int32_t kind, int8_t* codes) {
    const uint32_t largest = magnitude(x, count);
    float size;
    std::memcpy(&size, &largest, sizeof size);
    const bool zero = largest >= INFINITE || size < LEAST;
    const Floats factor = splat(zero ? 0.0f : 127.0f / size);
    alignas(64) int16_t rounded[BLOCK_COLUMNS + WIDTH];
    Ints sum = {};
    for (int i = 0; i < count; i += WIDTH) {
        const Floats whole = (zero ? Floats{} : load(x + i) * factor) + WHOLE;
        const Ints code = (Ints)whole - WHOLE_BITS;
        sum += code;
        const auto narrow = __builtin_convertvector(code, Shorts);
        std::memcpy(rounded + i, &narrow, sizeof narrow);
    }
    write_codes(rounded, count, kind, codes);
    int32_t total = 0;
    for (int i = 0; i < WIDTH; ++i) total += sum[i];
    // what is not finite makes the whole product so, as it would unrounded
    const float scale = largest >= INFINITE ? size - size : zero ? 0 : size / 127;
    return {scale, (float)total};
}

template <class T>
void round_row(const RoundArgs& args, int row) {
    const LinearWeight& weight = *args.weight;
    const int each = BLOCK_COLUMNS / steps(weight.kind);
    const T* const x = static_cast<const T*>(args.x) + row * args.x_stride;
    int8_t* codes = args.to.codes + row * args.to.code_stride;
    int64_t to = (int64_t)row * args.to.blocks;
    alignas(64) float columns[BLOCK_COLUMNS + WIDTH];
    for (int group = 0; group < weight.groups; ++group) {
        const int end = weight.group_start[group + 1];
        for (int line = weight.group_start[group]; line < end; line += each, ++to) {
            const int count = gather(weight, x, line, min(line + each, end), columns);
            const Block block = round_block(columns, count, weight.kind, codes);
            args.to.scales[to] = block.scale * weight.unit;
            args.to.sums[to] = block.sum;
            codes += count * code_width(weight.kind);
        }
    }
}

}  // namespace

void round_rows(const RoundArgs& args, int begin, int end) {
    for (int row = begin; row < end; ++row)
        if (args.x_bfloat16)
            round_row<BFloat16>(args, row);
        else
            round_row<float>(args, row);
}

}  // namespace infercore::INFERCORE_ISA
