#include "linear_int8.h"
#include "linear_put.h"

namespace infercore::INFERCORE_ISA {
namespace {

constexpr int SUMS = WIDTH == 16 ? 24 : 12;  // vectors of sums that fit into the registers
constexpr int BLOCK = 64;                    // rows of x whose sums wait in the cache
constexpr int DEPTH = 256;                   // columns of a panel that are decoded at once
constexpr int AHEAD = 16;                    // lines that are fetched early
constexpr int WIDE = WIDTH == 16 ? 2 : 1;    // panels that meet a block of rows at once

// Rows of x that a panel meets whole, and more that it meets in stretches, before it pays to decode
// it once for all of them instead of once for each few.
constexpr int few(int kind) { return kind < INT8 || kind == PAIRS ? 6 : 4; }
constexpr int some(int kind) { return kind < INT8 ? 12 : 0; }

// Whether there is nothing to decode.
constexpr bool plain(int kind) { return kind == FLOAT32 || kind == PAIRS; }

// sums [M][NR · 16] += x [M, columns of lines [start, stop)] · panels.
template <int M, int NR, bool FETCH, int KIND>
inline void tile(Panel<KIND> (&panels)[NR], int start, int stop,
                 const typename Meets<KIND>::Number* x, int64_t stride, float* sums) {
    constexpr int COUNT = NR * VECTORS, STEPS = Panel<KIND>::STEPS;
    Floats sum[M][COUNT];
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < COUNT; ++i) sum[m][i] = load(sums + m * NR * PANEL + i * WIDTH);
    for (int line = start; line < stop;) {
        int end = stop;
        for (Panel<KIND>& panel : panels) end = panel.enter(line, stop);
        for (; line < end; ++line, x += STEPS) {
            if constexpr (FETCH)
                for (const Panel<KIND>& panel : panels) panel.prefetch(line, AHEAD);
#pragma GCC unroll 8
            for (int step = 0; step < STEPS; ++step) {
                typename Meets<KIND>::Lanes w[COUNT];
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; ++i)
                    w[i] = panels[i / VECTORS].get(line, step, i % VECTORS);
#pragma GCC unroll 12
                for (int m = 0; m < M; ++m) {
                    const auto value = splat(x[m * stride + step]);
#pragma GCC unroll 8
                    for (int i = 0; i < COUNT; ++i) sum[m][i] = multiply_add(w[i], value, sum[m][i]);
                }
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < COUNT; ++i) store(sums + m * NR * PANEL + i * WIDTH, sum[m][i]);
}

// Calls tile with M = rows, which is at most MOST.
template <int M, int NR, bool FETCH, int KIND>
inline void tile_of(int rows, Panel<KIND> (&panels)[NR], int start, int stop,
                    const typename Meets<KIND>::Number* x, int64_t stride, float* sums) {
    if constexpr (M > 1) {
        if (rows < M) return tile_of<M - 1, NR, FETCH>(rows, panels, start, stop, x, stride, sums);
    }
    tile<M, NR, FETCH>(panels, start, stop, x, stride, sums);
}

// A few rows: each weight is decoded in registers, where it meets all of them.
template <int KIND, int NR>
void product_of_few(const LinearArgs& args, int panel) {
    constexpr int MOST = least(SUMS / (NR * VECTORS), few(KIND));
    const LinearWeight& weight = *args.weight;
    for (int row = 0; row < args.m; row += MOST) {
        const int rows = least(args.m - row, MOST);
        alignas(64) float sums[MOST * NR * PANEL] = {};
        Panel<KIND> panels[NR];
        for (int i = 0; i < NR; ++i) panels[i] = Panel<KIND>(weight, panel + i);
        const auto* x = static_cast<const typename Meets<KIND>::Number*>(args.x) + row * args.x_stride;
        tile_of<MOST, NR, true>(rows, panels, 0, weight.lines, x, args.x_stride, sums);
        put(args, sums, row, rows, panel, NR);
    }
}

// At most BLOCK rows, which meet the panels one stretch after the other, each from the cache.
// DECODED: the stretch is decoded to float32 first.
template <int KIND, int NR, bool DECODED>
void product_of_many(const LinearArgs& args, int row, int rows, int panel) {
    constexpr int MOST = SUMS / (WIDE * VECTORS), STEPS = steps(KIND), LINES = DEPTH / STEPS;
    using Number = typename Meets<KIND>::Number;
    const LinearWeight& weight = *args.weight;
    const int tiles = (rows + MOST - 1) / MOST;
    alignas(64) float sums[BLOCK * NR * PANEL] = {}, wide[DECODED ? NR : 1][DEPTH * PANEL];
    Panel<KIND> coded[NR];
    for (int i = 0; i < NR; ++i) coded[i] = Panel<KIND>(weight, panel + i);
    for (int start = 0; start < weight.lines; start += LINES) {
        const int stop = least(weight.lines, start + LINES);
        if constexpr (DECODED)
            for (int i = 0; i < NR; ++i) coded[i].decode(start, stop, wide[i]);
        for (int t = 0; t < tiles; ++t) {
            const int first = rows * t / tiles, count = rows * (t + 1) / tiles - first;
            float* const own = sums + first * NR * PANEL;
            const Number* x = static_cast<const Number*>(args.x) + (int64_t)start * STEPS +
                              (row + first) * args.x_stride;
            if constexpr (DECODED) {
                Panel<FLOAT32> panels[NR];
                for (int i = 0; i < NR; ++i) panels[i] = Panel<FLOAT32>(wide[i]);
                const int columns = (stop - start) * STEPS;
                tile_of<MOST, NR, false>(count, panels, 0, columns, x, args.x_stride, own);
            } else {
                tile_of<MOST, NR, true>(count, coded, start, stop, x, args.x_stride, own);
            }
        }
    }
    put(args, sums, row, rows, panel, NR);
}

template <int KIND, bool DECODED>
void many_rows(const LinearArgs& args, int begin, int end) {
    for (int row = 0; row < args.m; row += BLOCK) {
        const int rows = least(args.m - row, BLOCK);
        int panel = begin;
        for (; panel + WIDE <= end; panel += WIDE)
            product_of_many<KIND, WIDE, DECODED>(args, row, rows, panel);
        if (panel < end) product_of_many<KIND, 1, DECODED>(args, row, rows, panel);
    }
}

template <int KIND, int NR>
int few_rows(const LinearArgs& args, int begin, int end) {
    for (; begin + NR <= end; begin += NR) product_of_few<KIND, NR>(args, begin);
    return begin;
}

template <int KIND>
void product(const LinearArgs& args, int begin, int end) {
    if (args.m <= few(KIND)) {
        // as many panels at once as it takes to have enough sums in flight; scales of several
        // panels would take the registers that the sums need
        constexpr bool scaled = KIND >= INT8 && KIND <= CODEBOOK4;
        if constexpr (WIDTH == 16 || !scaled)
            if (args.m * 4 * VECTORS <= SUMS) begin = few_rows<KIND, 4>(args, begin, end);
        if constexpr (WIDTH < 16 && !scaled)
            if (args.m * 2 * VECTORS <= SUMS) begin = few_rows<KIND, 2>(args, begin, end);
        few_rows<KIND, 1>(args, begin, end);
        return;
    }
    if constexpr (plain(KIND)) {
        many_rows<KIND, false>(args, begin, end);
    } else {
        if constexpr (some(KIND) > 0)
            if (args.m <= some(KIND)) return many_rows<KIND, false>(args, begin, end);
        many_rows<KIND, true>(args, begin, end);
    }
}

}  // namespace

void linear(const LinearArgs& args, int begin, int end) {
    if (args.rounded != nullptr) return linear_int8(args, begin, end);
    switch (args.weight->kind) {
        case FLOAT32: return product<FLOAT32>(args, begin, end);
        case BFLOAT16:
            return args.x_pairs ? product<PAIRS>(args, begin, end)
                                : product<BFLOAT16>(args, begin, end);
        case FLOAT16: return product<FLOAT16>(args, begin, end);
        case INT8: return product<INT8>(args, begin, end);
        case INT4: return product<INT4>(args, begin, end);
        case CODEBOOK4: return product<CODEBOOK4>(args, begin, end);
    }
}

}  // namespace infercore::INFERCORE_ISA
