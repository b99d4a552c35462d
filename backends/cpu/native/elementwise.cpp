#include "elementwise.h"

#include "vmath.h"

namespace infercore::INFERCORE_ISA {
namespace {

constexpr int CHAINS = 4;  // partial sums of a row, so that additions need not wait for each other

// Calls body(i, n) for every vector of a row; n < WIDTH lanes count in the last one.
template <class Body>
inline void vectors(int size, const Body& body) {
    int i = 0;
    for (; i + WIDTH <= size; i += WIDTH) body(i, WIDTH);
    if (i < size) body(i, size - i);
}

template <class T>
inline Floats get(const T* from, int n) {
    return n == WIDTH ? load(from) : load_some(from, n);
}

template <class T>
inline void put(T* to, Floats x, int n) {
    n == WIDTH ? store(to, x) : store_some(to, x, n);
}

// The mean over a row of term(i, n), whose lanes from n on must be 0.
template <class Term>
inline float mean(int size, const Term& term) {
    Floats sums[CHAINS] = {};
    vectors(size, [&](int i, int n) { sums[i / WIDTH % CHAINS] += term(i, n); });
    return reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(size);
}

inline Floats first_lanes(Floats x, int n) {
    Ints lane;
    for (int i = 0; i < WIDTH; ++i) lane[i] = i;
    return lane < n ? x : Floats{};
}

// The row that is to be normed: x, or x + residual as it is stored.
template <class T>
const T* summed(const NormArgs& args, int row) {
    const int64_t token = row / args.per_token, inner = row % args.per_token;
    const T* x = static_cast<const T*>(args.x) + token * args.stride + inner * args.size;
    if (args.residual == nullptr) return x;
    const int64_t at = static_cast<int64_t>(row) * args.size;
    const T* residual = static_cast<const T*>(args.residual) + at;
    T* sum = static_cast<T*>(args.sum) + at;
    vectors(args.size, [&](int i, int n) {
        put(sum + i, get(x + i, n) + get(residual + i, n), n);
    });
    return sum;
}

// Zhang and Sennrich 2019; Ba et al. 2016.
template <class T>
void norm_row(const NormArgs& args, int row) {
    const T* x = summed<T>(args, row);
    float center = 0;
    if (args.centered) center = mean(args.size, [&](int i, int n) { return get(x + i, n); });
    const float square = mean(args.size, [&](int i, int n) {
        const Floats distance = get(x + i, n) - center;
        return n == WIDTH ? distance * distance : first_lanes(distance * distance, n);
    });
    const float scale = 1.0f / __builtin_sqrtf(square + args.eps);
    const float* weight = args.weight + int64_t(row % args.weights) * args.size;
    T* out = static_cast<T*>(args.out) + int64_t(row) * args.size;
    vectors(args.size, [&](int i, int n) {
        Floats y = (get(x + i, n) - center) * scale * get(weight + i, n);
        if (args.bias != nullptr) y += get(args.bias + i, n);
        put(out + i, y, n);
    });
}

// Su et al. 2021, halves as pairs.
template <class T>
void rope_row(const RopeArgs& args, int row) {
    const int64_t token = row / args.heads, head = row % args.heads;
    const int half = args.dim / 2;
    const T* x = static_cast<const T*>(args.x) + token * args.stride + head * args.dim;
    const int64_t at = (args.positions == nullptr ? token : args.positions[token]) * args.dim;
    const float *cos = args.cos + at, *sin = args.sin + at;
    T* out = static_cast<T*>(args.out) + int64_t(row) * args.dim;
    vectors(half, [&](int i, int n) {
        const Floats low = get(x + i, n), high = get(x + half + i, n);
        put(out + i, fma(high, get(sin + i, n), low * get(cos + i, n)), n);
        put(out + half + i, fma(low, get(sin + half + i, n), high * get(cos + half + i, n)), n);
    });
}

template <Activation activation>
inline Floats activated(Floats x) {
    if constexpr (activation == Activation::SILU) return x / (1.0f + exp(-x));
    if constexpr (activation == Activation::RELU) return x < 0.0f ? Floats{} : x;
    if constexpr (activation == Activation::GELU_TANH) {
        // (1 + tanh u) / 2 is the logistic function of 2u, which loses nothing where x is negative
        const float root = 0x1.988454p0f;  // 2 √(2 / π)
        return x / (1.0f + exp(x * fma(x * x, splat(-0.044715f * root), splat(-root))));
    }
    const Floats tail = 0.5f * erfc(floats(bits(x) & 0x7fffffff) * 0x1.6a09e6p-1f);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

template <class T, Activation activation>
void activate_row(const ActivationArgs& args, int row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride + args.begin;
    T* out = static_cast<T*>(args.out) + int64_t(row) * args.size + args.begin;
    const int size = (args.end < 0 ? args.size : args.end) - args.begin;
    if (args.gated)
        vectors(size, [&](int i, int n) {
            put(out + i, activated<activation>(get(x + i, n)) * get(x + args.size + i, n), n);
        });
    else
        vectors(size,
                [&](int i, int n) { put(out + i, activated<activation>(get(x + i, n)), n); });
}

template <class T>
void activate_row_by(const ActivationArgs& args, int row) {
    switch (args.activation) {
        case Activation::SILU: return activate_row<T, Activation::SILU>(args, row);
        case Activation::GELU: return activate_row<T, Activation::GELU>(args, row);
        case Activation::GELU_TANH: return activate_row<T, Activation::GELU_TANH>(args, row);
        case Activation::RELU: return activate_row<T, Activation::RELU>(args, row);
    }
}

}  // namespace

void norm(const NormArgs& args, int begin, int end) {
    for (int row = begin; row < end; ++row) switch (args.dtype) {
            case DType::FLOAT32: norm_row<float>(args, row); break;
            case DType::BFLOAT16: norm_row<BFloat16>(args, row); break;
            case DType::FLOAT16: norm_row<Float16>(args, row); break;
        }
}

void rope(const RopeArgs& args, int begin, int end) {
    for (int row = begin; row < end; ++row) switch (args.dtype) {
            case DType::FLOAT32: rope_row<float>(args, row); break;
            case DType::BFLOAT16: rope_row<BFloat16>(args, row); break;
            case DType::FLOAT16: rope_row<Float16>(args, row); break;
        }
}

void activate(const ActivationArgs& args, int begin, int end) {
    for (int row = begin; row < end; ++row) switch (args.dtype) {
            case DType::FLOAT32: activate_row_by<float>(args, row); break;
            case DType::BFLOAT16: activate_row_by<BFloat16>(args, row); break;
            case DType::FLOAT16: activate_row_by<Float16>(args, row); break;
        }
}

void elementary(int function, const float* x, float* out, int count) {
    vectors(count, [&](int i, int n) {
        const Floats from = get(x + i, n);
        put(out + i, function == 0 ? exp(from) : function == 1 ? tanh(from) : erfc(from), n);
    });
}

}  // namespace infercore::INFERCORE_ISA
