#include "linear_rows.h"

#include "lanes.h"

namespace infercore::INFERCORE_ISA {
namespace {

constexpr int OUTPUTS = 4;                  // that meet a few rows of x at once
constexpr int ROWS = WIDTH == 16 ? 6 : 3;   // whose sums with them fit into the registers

// sums [M][N] of rows of x with rows of W.
template <int M, int N>
inline void sums_of(const float* x, const float* w, int k, float (&to)[M][N]) {
    Floats sum[M][N] = {};
    int i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
        Floats row[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) row[m] = load(x + int64_t(m) * k + i);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const Floats weight = load(w + int64_t(n) * k + i);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sum[m][n] = fma(row[m], weight, sum[m][n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
            Floats total = sum[m][n];
            if (i < k)
                total = fma(load_some(x + int64_t(m) * k + i, k - i),
                            load_some(w + int64_t(n) * k + i, k - i), total);
            to[m][n] = reduce_sum(total);
        }
}

template <int M, int N>
void block(const RowsArgs& args, int row, int output) {
    float sums[M][N];
    sums_of<M, N>(args.x + int64_t(row) * args.k, args.weight + int64_t(output) * args.k, args.k,
                  sums);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) args.y[int64_t(row + m) * args.n + output + n] = sums[m][n];
}

// All rows of x, for N outputs.
template <int N>
void outputs(const RowsArgs& args, int output) {
    int row = 0;
    for (; row + ROWS <= args.m; row += ROWS) block<ROWS, N>(args, row, output);
    for (; row + 2 <= args.m; row += 2) block<2, N>(args, row, output);
    if (row < args.m) block<1, N>(args, row, output);
}

}  // namespace

void linear_rows(const RowsArgs& args, int begin, int end) {
    for (; begin + OUTPUTS <= end; begin += OUTPUTS) outputs<OUTPUTS>(args, begin);
    for (; begin < end; ++begin) outputs<1>(args, begin);
}

}  // namespace infercore::INFERCORE_ISA
