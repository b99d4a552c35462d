// What stands between a decoder's products: norms, rotary embedding, activations.
//
// Inputs and outputs are in `dtype`, with the arithmetic in float32; parameters and angles are
// float32. A row's result depends on that row only.
#pragma once

#include <cstdint>

#include "attention.h"

namespace infercore {

// Rows of `size` numbers: `per_token` of them follow each other in a token of x, and tokens stand
// `stride` elements apart. The outputs, and `residual`, are contiguous.
struct NormArgs {
    const void* x;
    const void* residual;  // added to x first, rounded to dtype as `sum`; or null
    const float* weight;   // [weights, size]: row r takes weight r % weights
    const float* bias;     // [size], or null
    void* out;
    void* sum;  // x + residual; only with a residual
    int64_t stride;
    int32_t per_token, size, weights;
    bool centered;  // layer norm, else RMS norm
    float eps;
    DType dtype;
};

// x and out [T, heads, dim]; rows are tokens × heads, strides as above.
struct RopeArgs {
    const void* x;
    const float* cos;  // [T, dim]
    const float* sin;  // [T, dim], the first half negated
    void* out;
    int64_t stride;
    int32_t heads, dim;
    DType dtype;
    const int64_t* positions = nullptr;  // [T], rows of cos and sin; null = one after the other
};

enum class Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

// out [T, size] = activation(x[:, :size]) (· x[:, size : 2 · size] if gated); or some columns.
struct ActivationArgs {
    const void* x;
    void* out;
    int64_t stride;  // of x
    int32_t size;
    Activation activation;
    bool gated;
    DType dtype;
    int32_t begin = 0, end = -1;  // columns of out; −1 = all from `begin` on
};

}  // namespace infercore

#ifdef INFERCORE_ISA
namespace infercore::INFERCORE_ISA {

// Rows [begin, end).
void norm(const NormArgs& args, int begin, int end);
void rope(const RopeArgs& args, int begin, int end);
void activate(const ActivationArgs& args, int begin, int end);

// A function of vmath.h, so that its error can be measured: 0 exp, 1 tanh, 2 erfc.
void elementary(int function, const float* x, float* out, int count);

}  // namespace infercore::INFERCORE_ISA
#endif
