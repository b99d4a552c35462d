// Matrix products y = x Wᵀ over weights in panels of 16 outputs.
//
// A panel holds its 16 rows of W in lines of 64 bytes, one after another along K. Line i is 16
// words of 32 bits, one per output; a word holds the next `steps` columns of that output:
//   float32           1 column
//   bfloat16          2 columns, the first in the low half
//   codes of 8 bits   4 columns, the first in the lowest byte
//   codes of 4 bits   8 columns: 0..3 in the low halves of the bytes, 4..7 in the high halves
// Only float16 lines hold 2 columns one after the other, 16 halves each.
// N is filled up to 16 and K to `steps` with zeros, which meet zeros of x.
//
// Every output is one chain of multiply-adds in float32, in the panel's order. Whatever splits the
// work, by rows of x, by panels or by threads, leaves that chain as it is, and so every bit.
//
// Where weights have scales, x may be rounded to int8 first, so that codes meet codes. Each row is
// rounded by itself, in blocks: the columns of a group, or 128 of them where a group has more. To
// do so, take memory for RoundedRows, run `round_rows` over the rows of x, then `linear` over the
// panels with LinearArgs.rounded set. The products of a block are summed in int32, exactly.
#pragma once

#include <cstdint>

namespace infercore {

constexpr int PANEL = 16;       // outputs of a panel
constexpr int LINE_BYTES = 64;  // of one line of a panel

enum LinearKind : int32_t {
    FLOAT32 = 0,
    BFLOAT16 = 1,
    FLOAT16 = 2,
    INT8 = 3,
    INT4 = 4,
    CODEBOOK4 = 5,
    PAIRS = 6,  // no weight's: that of BFLOAT16 where it meets two bfloat16 of x at once
};

// Columns in one line of a panel; for PAIRS, pairs of them.
constexpr int steps(int32_t kind) {
    return kind == FLOAT32 || kind == PAIRS ? 1 : kind <= FLOAT16 ? 2 : kind == INT8 ? 4 : 8;
}

constexpr int BLOCK_COLUMNS = 128;  // of x that share a scale when they are rounded, at most

// A weight; nothing of it is owned. Groups are runs of lines that share scales.
struct LinearWeight {
    int32_t kind;
    int32_t n, k;                // of W
    int32_t lines;               // of a panel
    int32_t groups;              // 0 where weights have no scales
    int32_t scale_kind;          // FLOAT32, BFLOAT16 or FLOAT16
    const uint8_t* panels;       // [ceil(n / 16)][lines][64]
    const void* scales;          // [ceil(n / 16)][groups][16]
    const void* zeros;           // the same: W = (code − zero) · scale; uint8_t for INT4, uint16_t
                                 // for INT8; null for CODEBOOK4
    const float* table;          // [16], what a code is worth in CODEBOOK4
    const int32_t* group_start;  // [groups + 1], first line of each group
    const int32_t* columns;      // [lines · steps], the column of x that meets here, −1 none;
                                 // null where that is 0, 1, 2, … and none behind the last
    const uint8_t* bytes = nullptr;  // [16], in CODEBOOK4: 128 + what a code is worth in units,
                                     // a whole number; null where x is not rounded
    float unit = 1;                  // of `bytes`; 1 for other kinds
    int32_t rounds = 0;              // x is to be rounded to int8
};

// Blocks of a row of x that is rounded.
inline int32_t blocks(const LinearWeight& weight) {
    const int32_t most = BLOCK_COLUMNS / steps(weight.kind);
    int32_t count = 0;
    for (int32_t g = 0; g < weight.groups; ++g)
        count += (weight.group_start[g + 1] - weight.group_start[g] + most - 1) / most;
    return count;
}

// Rows of x ≈ code · scale, rounded for one weight by `round_rows` of the same instruction set.
struct RoundedRows {
    int8_t* codes;       // [m, code_stride], in a form of the instruction set's own
    int64_t code_stride; // bytes, at least code_bytes(weight); a multiple of 8, as is the address
    float* scales;       // [m, blocks], with the weight's unit in them
    float* sums;         // [m, blocks], of the codes
    int32_t blocks;      // blocks(weight)
};

// Bytes of a row's codes in the widest form.
inline int64_t code_bytes(const LinearWeight& weight) {
    return static_cast<int64_t>(weight.lines) * steps(weight.kind) * 2;
}

struct RoundArgs {
    const LinearWeight* weight;
    const void* x;       // [m, k], in the order of W's columns
    int64_t x_stride;    // numbers from one row to the next
    int32_t x_bfloat16;  // else float32
    RoundedRows to;
};

// One product. x [m, lines · steps], already in the order of `columns`: float32, or, for a weight
// of BFLOAT16, bfloat16 in pairs as they lie in memory.
struct LinearArgs {
    const LinearWeight* weight;
    const void* x;
    int64_t x_stride;    // float32 numbers, or pairs, from one row to the next
    void* y;             // [m, n]
    int64_t y_stride;    // numbers from one row to the next
    int32_t x_pairs;     // else float32
    int32_t y_bfloat16;  // else float32
    int32_t m;
    const RoundedRows* rounded = nullptr;  // in place of x, which is not read
};

}  // namespace infercore

#ifdef INFERCORE_ISA
namespace infercore::INFERCORE_ISA {

// Outputs of panels [begin, end), of all m rows.
void linear(const LinearArgs& args, int begin, int end);

// Rows [begin, end) of x, to int8.
void round_rows(const RoundArgs& args, int begin, int end);

}  // namespace infercore::INFERCORE_ISA
#endif
