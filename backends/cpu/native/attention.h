// Paged attention: what its kernels read and write.
//
// Pages are stored as the kernels read them, in panels of 16 columns whose rows follow each other:
// keys as [block_size / 16][D][16 keys], values as [D / 16][block_size][16 dims], where D is
// rounded up to 16. In bfloat16 two rows are interleaved, [rows / 2][16 columns][2], so that one
// line holds what a product of pairs wants. A layer's keys are [kv head][block][page], and so are
// its values.
#pragma once

#include <cstdint>

namespace infercore {

enum class DType : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

constexpr int KV_PANEL = 16;    // columns of a panel
constexpr int MAX_DIM = 256;    // largest head
constexpr int KEY_TILE = 64;    // positions whose scores are weighed at once
constexpr int PARTITION = 512;  // positions that are summed apart from others, then merged in order

// Queries that share keys: `count` tokens of one row from `first` on, over all of their context,
// or, if `part` is not negative, one token over the positions of that partition alone, into
// place `partial` of the workspace.
struct AttentionTile {
    int32_t row, first, count, part, partial;
};

// A token whose partitions lie in places [begin, end) of the workspace.
struct AttentionMerge {
    int32_t token, begin, end;
};

// Strides count elements between tokens; within a token heads and dims are contiguous.
struct AttentionArgs {
    const void* q;               // dtype [T, H, D]
    const void* k;               // dtype [T, H_kv, D]
    const void* v;               // dtype [T, H_kv, D]
    void* out;                   // dtype [T, H, D], contiguous
    void* keys;                  // cache_dtype, of this layer
    void* values;                // cache_dtype, of this layer
    float* workspace;            // [partials, H, D + 2]: sums, their weight, their largest score
    const int64_t* slots;        // [T]
    const int32_t* query_start;  // [R + 1]
    const int32_t* context_len;  // [R]
    const int32_t* block_table;  // [R, table_width]
    const AttentionTile* tiles;
    const AttentionMerge* merges;
    int32_t tokens, num_tiles, num_merges;
    int32_t num_partials;
    int64_t q_stride, k_stride, v_stride, num_blocks;
    int32_t table_width, block_size, heads, kv_heads, head_dim;
    int32_t window;  // positions that are read, the current one included; 0 = all
    DType dtype, cache_dtype;
    float scale;
    float softcap;  // 0 = none
};

// What is wrong with a step's rows, in `plan_attention`'s words to its caller.
enum class BadPlan : int32_t { NONE = 0, QUERIES = 1, CONTEXT = 2, BLOCK = 3, SLOT = 4 };

// Rows as tiles of at most `tile_tokens` tokens, those with most keys first. Single tokens are
// computed by partitions where there are too few rows for the threads. Sets the counts of args;
// there must be room for a tile and a merge per token, and a tile per partition of each row.
// Plans nothing where an index lies outside of what it counts: no kernel looks at one again.
BadPlan plan_attention(AttentionArgs& args, int rows, int tile_tokens, AttentionTile* tiles,
                    AttentionMerge* merges);

}  // namespace infercore

#ifdef INFERCORE_ISA
namespace infercore::INFERCORE_ISA {

// In this order, each done before the next begins; the ranges are of [0, n).
void attention_write(const AttentionArgs& args, int begin, int end);   // n = tokens · kv_heads
void attention_attend(const AttentionArgs& args, int begin, int end);  // n = num_tiles · kv_heads
void attention_merge(const AttentionArgs& args, int begin, int end);   // n = num_merges · heads

}  // namespace infercore::INFERCORE_ISA
#endif
