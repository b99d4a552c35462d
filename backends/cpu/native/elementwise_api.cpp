// Norms, rotary embedding and activations as Python sees them; see elementwise.h for what is what.
#include "elementwise.h"

#include "dispatch.h"
#include "pool.h"

namespace infercore {
namespace {

constexpr int64_t TASK = 16384;  // numbers that one task should have, so that threads are worth it

template <class Args>
void by_rows(void (*kernel)(const Args&, int, int), const Args& args, int rows, int size) {
    const int64_t numbers = int64_t(rows) * size;
    const int tasks = numbers < 2 * TASK ? 1 : int(numbers / TASK < rows ? numbers / TASK : rows);
    parallel(tasks, [&](int i) {
        kernel(args, int(int64_t(rows) * i / tasks), int(int64_t(rows) * (i + 1) / tasks));
    });
}

}  // namespace
}  // namespace infercore

extern "C" {

void infercore_norm(const void* x, const void* residual, const float* weight, const float* bias,
                    void* out, void* sum, int tokens, int per_token, int size, int weights,
                    int64_t stride, float eps, int centered, int dtype) {
    using namespace infercore;
    const NormArgs args{x,         residual, weight,  bias,          out, sum,         stride,
                        per_token, size,     weights, centered != 0, eps, DType(dtype)};
    by_rows(kernels().norm, args, tokens * per_token, size);
}

void infercore_rope(const void* x, const float* cos, const float* sin, void* out, int tokens,
                    int heads, int dim, int64_t stride, int dtype) {
    using namespace infercore;
    const RopeArgs args{x, cos, sin, out, stride, heads, dim, DType(dtype)};
    by_rows(kernels().rope, args, tokens * heads, dim);
}

void infercore_activate(const void* x, void* out, int rows, int size, int64_t stride,
                        int activation, int gated, int dtype) {
    using namespace infercore;
    const ActivationArgs args{x,          out, stride, size, Activation(activation), gated != 0,
                              DType(dtype)};
    by_rows(kernels().activate, args, rows, size);
}

// vmath.h over float32[count], for its tests: 0 exp, 1 tanh, 2 erfc.
void infercore_elementary(int function, const float* x, float* out, int count) {
    infercore::kernels().elementary(function, x, out, count);
}
}
