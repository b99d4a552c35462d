// Products with torch's own float32 matrices, as Python sees them.
#include "linear_rows.h"

#include <algorithm>

#include "dispatch.h"
#include "pool.h"

extern "C" {

// y [m, n] = x [m, k] Wᵀ, all float32 and without gaps.
void infercore_linear_rows(const float* weight, const float* x, float* y, int n, int k, int m) {
    using namespace infercore;
    constexpr int64_t TASK = 1 << 16;  // products that one task should have, or weights to read
    constexpr int TOGETHER = 4;        // outputs that the kernel takes at once
    const int64_t least = TASK / (int64_t(k) * std::max(1, m / 4)) + 1;
    const int64_t each = (std::max<int64_t>(least, n / (8 * threads())) / TOGETHER + 1) * TOGETHER;
    const RowsArgs args = {weight, x, y, n, k, m};
    const auto run = kernels().linear_rows;
    parallel(int((n + each - 1) / each), [&](int task) {
        run(args, int(task * each), int(std::min<int64_t>(n, (task + 1) * each)));
    });
}
}
