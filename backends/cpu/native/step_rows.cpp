// What a lowered decoder does to single tokens, beside the operations of layers.
#include "lanes.h"
#include "step.h"

namespace infercore::INFERCORE_ISA {
namespace {

// Calls body(i, n) for every vector of a row; n < WIDTH lanes count in the last one.
template <class Body>
inline void vectors(int begin, int end, const Body& body) {
    int i = begin;
    for (; i + WIDTH <= end; i += WIDTH) body(i, WIDTH);
    if (i < end) body(i, end - i);
}

template <class T>
inline Floats get(const T* from, int n) {
    return n == WIDTH ? load(from) : load_some(from, n);
}

template <class T>
inline void put(T* to, Floats x, int n) {
    n == WIDTH ? store(to, x) : store_some(to, x, n);
}

// Each step is rounded to T, as layer by layer it is.
template <class T>
void embed_token(const EmbedArgs& args, int token) {
    const int size = args.of.size;
    const T* row = static_cast<const T*>(args.of.table) + args.ids[token] * size;
    T* out = static_cast<T*>(args.out) + int64_t(token) * args.stride;
    if (args.of.scale == 1.0f)
        std::memcpy(out, row, sizeof(T) * size);
    else
        vectors(0, size, [&](int i, int n) { put(out + i, get(row + i, n) * args.of.scale, n); });
    if (args.of.positions == nullptr) return;
    const T* place = static_cast<const T*>(args.of.positions) + args.positions[token] * size;
    vectors(0, size,
            [&](int i, int n) { put(out + i, get(out + i, n) + get(place + i, n), n); });
}

inline void convert(float x, float& out) { out = x; }
inline void convert(BFloat16 x, BFloat16& out) { out = x; }
inline void convert(BFloat16 x, float& out) {
    const uint32_t word = uint32_t(x.bits) << 16;
    std::memcpy(&out, &word, sizeof out);
}

template <class In, class Out>
void arrange_token(const ArrangeArgs& args, int token) {
    const LinearWeight& weight = *args.weight;
    const int count = weight.lines * steps(weight.kind);
    const In* x = static_cast<const In*>(args.x) + token * args.stride;
    Out* out = static_cast<Out*>(args.out) + int64_t(token) * count;
    if (weight.columns != nullptr) {
        for (int i = 0; i < count; ++i) {
            out[i] = Out{};
            if (weight.columns[i] >= 0) convert(x[weight.columns[i]], out[i]);
        }
        return;
    }
    vectors(0, weight.k, [&](int i, int n) { put(out + i, get(x + i, n), n); });
    vectors(weight.k, count, [&](int i, int n) { put(out + i, Floats{}, n); });
}

template <class T>
void add_bias_to(const BiasArgs& args, int begin, int end) {
    const T* bias = static_cast<const T*>(args.bias);
    for (int token = 0; token < args.tokens; ++token) {
        T* y = static_cast<T*>(args.y) + token * args.stride;
        vectors(begin, end,
                [&](int i, int n) { put(y + i, get(y + i, n) + get(bias + i, n), n); });
    }
}

}  // namespace

void embed(const EmbedArgs& args, int begin, int end) {
    for (int token = begin; token < end; ++token)
        args.bfloat16 ? embed_token<BFloat16>(args, token) : embed_token<float>(args, token);
}

void arrange(const ArrangeArgs& args, int begin, int end) {
    for (int token = begin; token < end; ++token)
        if (args.pairs)
            arrange_token<BFloat16, BFloat16>(args, token);
        else if (args.bfloat16)
            arrange_token<BFloat16, float>(args, token);
        else
            arrange_token<float, float>(args, token);
}

void add_bias(const BiasArgs& args, int begin, int end) {
    args.bfloat16 ? add_bias_to<BFloat16>(args, begin, end) : add_bias_to<float>(args, begin, end);
}

}  // namespace infercore::INFERCORE_ISA
