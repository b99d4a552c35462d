// y = x Wᵀ over float32 weights [N, K] as torch has them, which an embedding may share.
//
// Every output is one sum: lanes along K, one after another, then pairwise over the lanes. What
// splits the work, by rows of x, by outputs or by threads, leaves it as it is, and so every bit.
#pragma once

#include <cstdint>

namespace infercore {

struct RowsArgs {
    const float* weight;  // [n, k]
    const float* x;       // [m, k]
    float* y;             // [m, n]
    int32_t n, k, m;
};

}  // namespace infercore

#ifdef INFERCORE_ISA
namespace infercore::INFERCORE_ISA {

// Outputs [begin, end), of all m rows.
void linear_rows(const RowsArgs& args, int begin, int end);

}  // namespace infercore::INFERCORE_ISA
#endif
