// Codes times codes: a block's products are summed as whole numbers, and scaled once.
#include "linear_int8.h"

#include "linear_dot.h"
#include "linear_put.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace infercore::INFERCORE_ISA {
namespace {

constexpr int ROWS = WIDTH == 16 ? 12 : 4;    // whose sums fit into the registers
constexpr int WIDE = WIDTH == 16 ? 2 : 1;     // panels that meet them at once
constexpr int BLOCK = 64;                     // rows whose sums wait in the cache
constexpr int STRETCH = 64;                   // lines that they meet one after the other
constexpr int AHEAD = 16;                     // lines that are fetched early
constexpr int AT_ONCE = WIDTH == 16 ? 1 : 4;  // lines whose instructions are mixed

// Blocks of x, one after the other, with the lines and the scales that they meet.
struct Walk {
    const LinearWeight* weight;
    int each, group = 0, line = 0, stop = 0, index = 0;

    explicit Walk(const LinearWeight& of) : weight(&of), each(BLOCK_COLUMNS / steps(of.kind)) {
        limit();
    }

    bool more() const { return group < weight->groups; }

    void next() {
        line = stop;
        ++index;
        if (line == weight->group_start[group + 1]) ++group;
        if (more()) limit();
    }

  private:
    void limit() {
        const int end = weight->group_start[group + 1];
        stop = least(line + each, end);
    }
};

// Rows of x from some one on, and of their codes those that meet lines from some one on.
struct Rows {
    const int8_t* codes;
    const float *scales, *sums;
    int64_t stride;
    int blocks;
};

template <int KIND>
Rows rows_from(const RoundedRows& all, int row, int line) {
    const int64_t number = (int64_t)row * all.blocks;
    const int64_t first = (int64_t)line * Codes<KIND>::WORDS * 4;
    const int8_t* const codes = all.codes + row * all.code_stride + first;
    return {codes, all.scales + number, all.sums + number, all.code_stride, all.blocks};
}

// Panels, from some line on.
template <int NR>
struct Lines {
    const uint8_t* panels[NR];
};

// sum [M][NR · VECTORS] += products of M rows with `count` lines, from `line` on.
template <int KIND, int M, int NR>
ALWAYS_INLINE void add_lines(const Codes<KIND>& codes, const Lines<NR>& lines, int line, int count,
                             const Rows& x, Ints (&sum)[M][NR * VECTORS]) {
    using Line = Codes<KIND>;
    constexpr int COUNT = NR * VECTORS;
    const int8_t* words = x.codes + (int64_t)line * Line::WORDS * 4;
#pragma GCC unroll AT_ONCE
    for (int l = 0; l < count; ++l) {
        const int64_t at = (int64_t)(line + l) * LINE_BYTES;
        for (const uint8_t* panel : lines.panels)
            __builtin_prefetch(panel + at + AHEAD * LINE_BYTES);
#pragma GCC unroll 2
        for (int part = 0; part < Line::PARTS; ++part, words += Line::WIDER * 4) {
            Words piece[COUNT][Line::WIDER];
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) {
                const uint8_t* from = lines.panels[i / VECTORS] + at + i % VECTORS * WIDTH * 4;
                codes.widened(codes.part(unaligned<Words>(from), part), piece[i]);
            }
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int p = 0; p < Line::WIDER; ++p) {
                    uint32_t word;
                    std::memcpy(&word, words + m * x.stride + p * 4, sizeof word);
#pragma GCC unroll 8
                    for (int i = 0; i < COUNT; ++i)
                        sum[m][i] = add_products<KIND>(sum[m][i], piece[i][p], word);
                }
        }
    }
}

// The same in sums of 16 bits, which go into sums of 32, or are the first of them.
template <int KIND, int M, int NR>
ALWAYS_INLINE void add_narrow(const Codes<KIND>& codes, const Lines<NR>& lines, int line, int count,
                              const Rows& x, bool first, Ints* sums) {
    Ints part[M][NR * VECTORS] = {};
    add_lines<KIND, M, NR>(codes, lines, line, count, x, part);
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < NR * VECTORS; ++i) {
            Ints& sum = sums[m * NR * VECTORS + i];
            sum = first ? widened_sums(part[m][i]) : sum + widened_sums(part[m][i]);
        }
}

// sums [M][NR · VECTORS] of 32 bits: products of lines [start, stop) with M rows.
template <int KIND, int M, int NR>
inline void multiply(const Codes<KIND>& codes, const Lines<NR>& lines, int start, int stop,
                     const Rows& x, Ints* sums) {
    constexpr int COUNT = NR * VECTORS, NARROW = Codes<KIND>::NARROW_LINES;
    if constexpr (NARROW > 0) {
        for (int line = start; line < stop; line += NARROW) {
            const bool first = line == start;
            if (line + NARROW <= stop)
                add_narrow<KIND, M, NR>(codes, lines, line, NARROW, x, first, sums);
            else
                add_narrow<KIND, M, NR>(codes, lines, line, stop - line, x, first, sums);
        }
    } else {
        Ints sum[M][COUNT] = {};
        add_lines<KIND, M, NR>(codes, lines, start, stop - start, x, sum);
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < COUNT; ++i) sums[m * COUNT + i] = sum[m][i];
    }
}

// totals [M][NR · 16] += the products of blocks from `walk` up to that of `index` end. lines and x
// begin where `walk` does. AS: the kind that lines have become; sums: M · NR · VECTORS vectors of
// the caller's, so that the compiler leaves them in memory.
template <int KIND, int AS, int M, int NR>
__attribute__((noinline)) void tile(Walk walk, int end, int panel, const Lines<NR> lines,
                                    const Rows x, Ints* sums, float* totals) {
    constexpr int COUNT = NR * VECTORS, MORE = steps(KIND) / steps(AS);
    const LinearWeight weight = *walk.weight;
    const Codes<AS> codes(weight);
    for (const int origin = walk.line; walk.index < end; walk.next()) {
        const int start = (walk.line - origin) * MORE, stop = (walk.stop - origin) * MORE;
        multiply<AS, M, NR>(codes, lines, start, stop, x, sums);
        const float* const factors = x.scales + walk.index;
        const float* const of_codes = x.sums + walk.index;
        for (int i = 0; i < COUNT; ++i) {
            const int group = (panel + i / VECTORS) * weight.groups + walk.group;
            const int64_t at = (int64_t)group * PANEL + i % VECTORS * WIDTH;
            const Floats scale = scales_at(weight, at);
            Floats zero = splat(-128.0f);
            if constexpr (KIND != CODEBOOK4) zero = -zeros_at<KIND>(weight, at);
            for (int m = 0; m < M; ++m) {
                float* const total = totals + m * NR * PANEL + i * WIDTH;
                const Floats sum = converted((Words)sums[m * COUNT + i]);
                // exact: both terms are whole numbers below 2²⁴
                const Floats whole = fma(zero, splat(of_codes[m * x.blocks]), sum);
                store(total, fma(whole * splat(factors[m * x.blocks]), scale, load(total)));
            }
        }
    }
}

// Calls tile with M = rows, which is at most M.
template <int KIND, int AS, int M, int NR>
void tile_of(int rows, const Walk& walk, int end, int panel, const Lines<NR>& lines, const Rows& x,
             Ints* sums, float* totals) {
    if constexpr (M > 1) {
        if (rows < M)
            return tile_of<KIND, AS, M - 1, NR>(rows, walk, end, panel, lines, x, sums, totals);
    }
    tile<KIND, AS, M, NR>(walk, end, panel, lines, x, sums, totals);
}

// `count` lines of CODEBOOK4 as twice as many of INT8.
void look_up(const LinearWeight& weight, const uint8_t* lines, int count, uint8_t* out) {
    const Codes<CODEBOOK4> codes(weight);
    for (int line = 0; line < count; ++line, lines += LINE_BYTES)
        for (int part = 0; part < 2; ++part, out += LINE_BYTES)
            for (int i = 0; i < VECTORS; ++i) {
                const Words words = codes.part(unaligned<Words>(lines + i * WIDTH * 4), part);
                std::memcpy(out + i * WIDTH * 4, &words, sizeof words);
            }
}

// At most BLOCK rows and NR panels, one stretch after the other. AS: INT8 where codes of
// CODEBOOK4 are looked up once for all rows, else KIND.
template <int KIND, int AS, int NR, int MOST>
void product_of(const LinearArgs& args, int row, int rows, int panel) {
    constexpr int LONGEST = STRETCH + BLOCK_COLUMNS / steps(KIND);
    const LinearWeight& weight = *args.weight;
    alignas(64) float totals[BLOCK * NR * PANEL];
    alignas(64) uint8_t found[KIND == AS ? 1 : NR][KIND == AS ? 1 : LONGEST * 2 * LINE_BYTES];
    Ints sums[MOST * NR * VECTORS];
    std::memset(totals, 0, sizeof(float) * rows * NR * PANEL);
    const int tiles = (rows + MOST - 1) / MOST;
    for (Walk walk(weight); walk.more();) {
        Walk end = walk;
        while (end.more() && (tiles == 1 || end.line < walk.line + STRETCH)) end.next();
        Lines<NR> lines;
        for (int i = 0; i < NR; ++i) {
            const int64_t first = (int64_t)(panel + i) * weight.lines + walk.line;
            lines.panels[i] = weight.panels + first * LINE_BYTES;
            if constexpr (KIND != AS) {
                look_up(weight, lines.panels[i], end.line - walk.line, found[i]);
                lines.panels[i] = found[i];
            }
        }
        for (int t = 0; t < tiles; ++t) {
            const int first = rows * t / tiles, count = rows * (t + 1) / tiles - first;
            const Rows x = rows_from<KIND>(*args.rounded, row + first, walk.line);
            tile_of<KIND, AS, MOST, NR>(count, walk, end.index, panel, lines, x, sums,
                                        totals + first * NR * PANEL);
        }
        walk = end;
    }
    put(args, totals, row, rows, panel, NR);
}

template <int KIND, int AS, int NR, int MOST>
int products(const LinearArgs& args, int row, int begin, int end) {
    const int rows = least(args.m - row, BLOCK);
    for (; begin + NR <= end; begin += NR) product_of<KIND, AS, NR, MOST>(args, row, rows, begin);
    return begin;
}

template <int KIND, int AS>
void product(const LinearArgs& args, int begin, int end) {
    for (int row = 0; row < args.m; row += BLOCK) {
        const int last = products<KIND, AS, WIDE, ROWS>(args, row, begin, end);
        if constexpr (WIDE > 1) products<KIND, AS, 1, ROWS>(args, row, last, end);
    }
}

template <int KIND>
void product(const LinearArgs& args, int begin, int end) {
    // one row alone has too few sums in flight on few panels
    if constexpr (WIDTH == 16)
        if (args.m == 1) begin = products<KIND, KIND, 4, 1>(args, 0, begin, end);
    if constexpr (KIND == CODEBOOK4)
        if (args.m > ROWS) return product<KIND, INT8>(args, begin, end);
    product<KIND, KIND>(args, begin, end);
}

}  // namespace

void linear_int8(const LinearArgs& args, int begin, int end) {
    switch (args.weight->kind) {
        case INT8: return product<INT8>(args, begin, end);
        case INT4: return product<INT4>(args, begin, end);
        case CODEBOOK4: return product<CODEBOOK4>(args, begin, end);
    }
}

}  // namespace infercore::INFERCORE_ISA
