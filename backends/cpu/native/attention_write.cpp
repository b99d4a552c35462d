// Keys and values into their pages, in the cache's dtype.
#include <type_traits>

#include "attention.h"
#include "panel_product.h"

namespace infercore::INFERCORE_ISA {
namespace {

// One token's head in the cache's dtype.
template <class T, class S>
const T* converted(const S* x, int dim, T* room) {
    if constexpr (std::is_same_v<T, S>) return x;
    int d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) store(room + d, load(x + d));
    if (d < dim) store_some(room + d, load_some(x + d, dim - d), dim - d);
    return room;
}

// One token's keys and values of one KV head into its place of the pages.
template <class T, class S>
void write_token(const AttentionArgs& args, int kv_head, int token) {
    const int dim = padded(args.head_dim), size = args.block_size;
    const int64_t slot = args.slots[token];
    if (slot < size) return;  // padding, which several threads may write
    const int at = int(slot % size);
    const int64_t page = (kv_head * args.num_blocks + slot / size) * size * dim;
    T* keys = static_cast<T*>(args.keys) + page + at / KV_PANEL * KV_PANEL * dim;
    T* values = static_cast<T*>(args.values) + page;
    const int64_t head = int64_t(kv_head) * args.head_dim;
    T key_room[MAX_DIM], value_room[MAX_DIM];
    const T* k = converted(static_cast<const S*>(args.k) + token * args.k_stride + head,
                           args.head_dim, key_room);
    const T* v = converted(static_cast<const S*>(args.v) + token * args.v_stride + head,
                           args.head_dim, value_room);
    constexpr int ROWS = std::is_same_v<T, BFloat16> ? 2 : 1;  // of a panel that are interleaved
    for (int d = 0; d < args.head_dim; ++d) {
        const int key_line = d / ROWS * ROWS * KV_PANEL, value_line = at / ROWS * ROWS * KV_PANEL;
        keys[key_line + at % KV_PANEL * ROWS + d % ROWS] = k[d];
        values[d / KV_PANEL * KV_PANEL * size + value_line + d % KV_PANEL * ROWS + at % ROWS] =
            v[d];
    }
}

template <class T>
void write_tokens(const AttentionArgs& args, int begin, int end) {
    for (int i = begin; i < end; ++i) {
        const int token = i / args.kv_heads, head = i % args.kv_heads;
        switch (args.dtype) {
            case DType::FLOAT32: write_token<T, float>(args, head, token); break;
            case DType::BFLOAT16: write_token<T, BFloat16>(args, head, token); break;
            default: write_token<T, Float16>(args, head, token);
        }
    }
}

}  // namespace

void attention_write(const AttentionArgs& args, int begin, int end) {
    switch (args.cache_dtype) {
        case DType::FLOAT32: return write_tokens<float>(args, begin, end);
        case DType::BFLOAT16: return write_tokens<BFloat16>(args, begin, end);
        default: return write_tokens<Float16>(args, begin, end);
    }
}

}  // namespace infercore::INFERCORE_ISA
