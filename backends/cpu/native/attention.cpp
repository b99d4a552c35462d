// Paged attention with online softmax in float32 (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// A token's result depends on its own positions only: keys are weighed in tiles, and sums merged
// in partitions, at absolute positions; every sum runs over one query in one order, whichever
// queries stand beside it in a tile, whichever thread has the tile, and whether the token came
// alone or in a chunk.
#include "attention.h"

#include <cmath>

#include "panel_product.h"
#include "vmath.h"

namespace infercore::INFERCORE_ISA {
namespace {

constexpr int TILE_ROWS = 48;  // queries × heads that go over the keys together

void zero(float* to, int dim) {
    for (int d = 0; d < dim; d += WIDTH) store(to + d, Floats{});
}

// Weighted sums of values, the sum of the weights, and the score that they are relative to.
struct State {
    alignas(64) float sums[TILE_ROWS][MAX_DIM];
    float weight[TILE_ROWS];
    float largest[TILE_ROWS];

    void clear(int row, int dim) {
        zero(sums[row], dim);
        weight[row] = 0;
        largest[row] = -INFINITY;
    }
};

float exp_of(float x) { return exp(splat(x))[0]; }

void rescale(float* sums, float factor, int dim) {
    for (int d = 0; d < dim; d += WIDTH) store(sums + d, load(sums + d) * factor);
}

// total += part, both relative to the larger of their scores. `total` may be empty.
void merge(float* total, float& weight, float& largest, const float* part, float part_weight,
           float part_largest, int dim) {
    const float top = largest > part_largest ? largest : part_largest;
    const float mine = exp_of(largest - top), its = exp_of(part_largest - top);
    for (int d = 0; d < dim; d += WIDTH)
        store(total + d, fma(load(part + d), splat(its), load(total + d) * mine));
    weight = weight * mine + part_weight * its;
    largest = top;
}

// One token's head of the output: at, counted in heads.
template <class S>
void write_as(const AttentionArgs& args, int64_t at, const float* sums, float weight) {
    S* to = static_cast<S*>(args.out) + at * args.head_dim;
    int d = 0;
    for (; d + WIDTH <= args.head_dim; d += WIDTH) store(to + d, load(sums + d) / weight);
    if (d < args.head_dim) store_some(to + d, load(sums + d) / weight, args.head_dim - d);
}

void write_out(const AttentionArgs& args, int64_t at, const float* sums, float weight) {
    switch (args.dtype) {
        case DType::FLOAT32: return write_as<float>(args, at, sums, weight);
        case DType::BFLOAT16: return write_as<BFloat16>(args, at, sums, weight);
        default: return write_as<Float16>(args, at, sums, weight);
    }
}

// Queries of one tile × the heads that share one KV head, token by token.
template <class T>
class Attend {
  public:
    Attend(const AttentionArgs& args, const AttentionTile& tile, int kv_head)
        : args(args),
          tile(tile),
          dim(padded(args.head_dim)),
          shared(args.heads / args.kv_heads),
          page(int64_t(args.block_size) * dim),
          table(args.block_table + int64_t(tile.row) * args.table_width),
          keys(static_cast<const T*>(args.keys) + kv_head * args.num_blocks * page),
          values(static_cast<const T*>(args.values) + kv_head * args.num_blocks * page),
          kv_head(kv_head) {}

    void run() {
        const int heads_at_once = min(shared, TILE_ROWS);
        const int tokens_at_once = max(1, TILE_ROWS / shared);
        for (int token = 0; token < tile.count; token += tokens_at_once)
            for (int head = 0; head < shared; head += heads_at_once) {
                tokens = min(tokens_at_once, tile.count - token);
                heads = min(heads_at_once, shared - head);
                first_token = tile.first + token;
                first_head = kv_head * shared + head;
                pass();
            }
    }

  private:
    const AttentionArgs& args;
    const AttentionTile& tile;
    const int dim, shared;
    const int64_t page;
    const int32_t* const table;
    const T *const keys, *const values;
    const int kv_head;
    int tokens, heads, first_token, first_head;  // of this pass
    int position;                                // of the first token
    alignas(64) float q[TILE_ROWS][MAX_DIM];
    alignas(64) float scores[TILE_ROWS][KEY_TILE];
    State part, total;

    int first_seen(int at) const {
        return args.window > 0 ? max(0, at + 1 - args.window) : 0;
    }

    // All tokens of the pass over all that they see.
    void pass() {
        load_queries();
        position = args.context_len[tile.row] - args.query_start[tile.row + 1] + first_token;
        const int end = position + tokens;
        const int first = first_seen(position) / PARTITION, last = (end - 1) / PARTITION;
        if (tile.part >= 0) {
            partition(tile.part, end);
            return keep();
        }
        for (int row = 0; row < tokens * heads; ++row) total.clear(row, dim);
        for (int index = first; index <= last; ++index) {
            partition(index, end);
            for (int row = 0; row < tokens * heads; ++row)
                if (part.largest[row] != -INFINITY || part.weight[row] != 0)
                    merge(total.sums[row], total.weight[row], total.largest[row], part.sums[row],
                          part.weight[row], part.largest[row], dim);
        }
        finish();
    }

    void load_queries() {
        for (int t = 0; t < tokens; ++t)
            for (int h = 0; h < heads; ++h) {
                const int64_t at = (first_token + t) * args.q_stride +
                                   int64_t(first_head + h) * args.head_dim;
                copy_in(q[t * heads + h], at);
            }
    }

    void copy_in(float* to, int64_t at) {
        switch (args.dtype) {
            case DType::FLOAT32: return copy_as<float>(to, at);
            case DType::BFLOAT16: return copy_as<BFloat16>(to, at);
            default: return copy_as<Float16>(to, at);
        }
    }

    template <class S>
    void copy_as(float* to, int64_t at) {
        const S* from = static_cast<const S*>(args.q) + at;
        int d = 0;
        for (; d + WIDTH <= args.head_dim; d += WIDTH) store(to + d, load(from + d));
        if (d < args.head_dim) store(to + d, load_some(from + d, args.head_dim - d));
    }

    // part = the sums over positions [index · PARTITION, (index + 1) · PARTITION) before `end`.
    void partition(int index, int end) {
        for (int row = 0; row < tokens * heads; ++row) part.clear(row, dim);
        const int from = max(index * PARTITION, first_seen(position) / KEY_TILE * KEY_TILE);
        const int to = min((index + 1) * PARTITION, end);
        fetch_keys(from, to);
        for (int at = from; at < to; at += KEY_TILE) key_tile(at, to);
    }

    // Pages lie anywhere, so what comes next is asked for early: the tile at `at`, before `end`.
    void fetch_keys(int at, int end) const {
        for (int here = at; here < min(at + KEY_TILE, end); here += KV_PANEL)
            fetch(page_of(keys, here) + int64_t(here % args.block_size) * dim, dim);
    }

    void fetch_values(int at, int end) const {
        for (int here = at; here < min(at + KEY_TILE, end); here += KV_PANEL)
            for (int d = 0; d < dim; d += KV_PANEL)
                fetch(page_of(values, here) + int64_t(d) * args.block_size +
                          here % args.block_size * KV_PANEL,
                      KV_PANEL);
    }

    // `rows` rows of a panel.
    static void fetch(const T* from, int rows) {
        const char* at = reinterpret_cast<const char*>(from);
        for (int byte = 0; byte < rows * KV_PANEL * int(sizeof(T)); byte += 64)
            __builtin_prefetch(at + byte);
    }

    // The positions of [at, at + KEY_TILE) that token t sees, counted from `at`.
    int low(int t, int at) const { return max(0, first_seen(position + t) - at); }
    int high(int t, int at) const { return min(KEY_TILE, position + t + 1 - at); }

    void key_tile(int at, int end) {
        fetch_values(at, end);
        const int most = high(tokens - 1, at), least = min(low(0, at), KEY_TILE);
        score(at, least / KV_PANEL, (most + KV_PANEL - 1) / KV_PANEL);
        fetch_keys(at + KEY_TILE, end);
        for (int t = 0; t < tokens; ++t)
            if (low(t, at) < high(t, at))
                for (int h = 0; h < heads; ++h) weigh(t * heads + h, low(t, at), high(t, at));
        // what all tokens see they sum together, the rest each on its own; ascending for each
        const int from = low(tokens - 1, at), to = high(0, at);
        if (from >= to) {
            for (int t = 0; t < tokens; ++t) sum_values(t, 1, at, low(t, at), high(t, at));
            return;
        }
        for (int t = 0; t < tokens; ++t) sum_values(t, 1, at, low(t, at), from);
        sum_values(0, tokens, at, from, to);
        for (int t = 0; t < tokens; ++t) sum_values(t, 1, at, to, high(t, at));
    }

    const T* page_of(const T* cache, int at) const {
        return cache + int64_t(table[at / args.block_size]) * page;
    }

    // scores = q kᵀ, of groups [begin, end) of 16 positions of the tile.
    void score(int at, int begin, int end) {
        Product<T> p(q[0], MAX_DIM, scores[0] + begin * KV_PANEL, KEY_TILE, false);
        p.runs = 1;
        p.first[0] = 0;
        p.count[0] = args.head_dim;
        for (int group = begin; group < end; ++group) {
            const int here = at + group * KV_PANEL;
            p.panels[0][group - begin] =
                page_of(keys, here) + int64_t(here % args.block_size) * dim;
        }
        product(p, tokens * heads, end - begin);
    }

    // Scores of one row to weights relative to its largest so far; what is not seen weighs 0.
    void weigh(int row, int from, int to) {
        float* at = scores[row];
        for (int i = 0; i < KEY_TILE; i += WIDTH) store(at + i, load(at + i) * args.scale);
        if (args.softcap > 0)
            for (int i = 0; i < KEY_TILE; i += WIDTH)
                store(at + i, tanh(load(at + i) / args.softcap) * args.softcap);
        for (int i = 0; i < from; ++i) at[i] = -INFINITY;
        for (int i = to; i < KEY_TILE; ++i) at[i] = -INFINITY;
        Floats top = splat(-INFINITY);
        for (int i = 0; i < KEY_TILE; i += WIDTH) top = max(load(at + i), top);
        const float largest = max(part.largest[row], reduce_max(top));
        if (largest > part.largest[row] && part.weight[row] != 0) {
            const float factor = exp_of(part.largest[row] - largest);
            rescale(part.sums[row], factor, dim);
            part.weight[row] *= factor;
        }
        part.largest[row] = largest;
        Floats weight = {};
        for (int i = 0; i < KEY_TILE; i += WIDTH) {
            const Floats x = exp(load(at + i) - largest);
            store(at + i, x);
            weight += x;
        }
        part.weight[row] += reduce_sum(weight);
    }

    // Adds the weighted values of positions [from, to) of the tile to `count` tokens' sums.
    void sum_values(int token, int count, int at, int from, int to) {
        if (from >= to) return;
        const int row = token * heads, panels = dim / KV_PANEL;
        Product<T> p(scores[row] + from, KEY_TILE, part.sums[row], MAX_DIM, true);
        for (; from < to; from += p.count[p.runs++]) {
            const int offset = (at + from) % args.block_size;
            p.first[p.runs] = offset;
            p.count[p.runs] = min(to - from, args.block_size - offset);
            const T* values_here = page_of(values, at + from);
            for (int n = 0; n < panels; ++n)
                p.panels[p.runs][n] = values_here + n * args.block_size * KV_PANEL;
        }
        product(p, count * heads, panels);
    }

    float* partial(int place, int head) const {
        return args.workspace + (int64_t(place) * args.heads + head) * (dim + 2);
    }

    void keep() {
        for (int row = 0; row < heads; ++row) {
            float* to = partial(tile.partial, first_head + row);
            std::memcpy(to, part.sums[row], dim * sizeof(float));
            to[dim] = part.weight[row];
            to[dim + 1] = part.largest[row];
        }
    }

    void finish() {
        for (int t = 0; t < tokens; ++t)
            for (int h = 0; h < heads; ++h) {
                const int row = t * heads + h;
                const int64_t at = int64_t(first_token + t) * args.heads + first_head + h;
                write_out(args, at, total.sums[row], total.weight[row]);
            }
    }
};

template <class T>
void attend_tiles(const AttentionArgs& args, int begin, int end) {
    for (int i = begin; i < end; ++i)
        Attend<T>(args, args.tiles[i / args.kv_heads], i % args.kv_heads).run();
}

}  // namespace

void attention_attend(const AttentionArgs& args, int begin, int end) {
    switch (args.cache_dtype) {
        case DType::FLOAT32: return attend_tiles<float>(args, begin, end);
        case DType::BFLOAT16: return attend_tiles<BFloat16>(args, begin, end);
        default: return attend_tiles<Float16>(args, begin, end);
    }
}

void attention_merge(const AttentionArgs& args, int begin, int end) {
    const int dim = padded(args.head_dim);
    alignas(64) float sums[MAX_DIM];
    for (int i = begin; i < end; ++i) {
        const AttentionMerge& parts = args.merges[i / args.heads];
        const int head = i % args.heads;
        float weight = 0, largest = -INFINITY;
        zero(sums, dim);
        for (int place = parts.begin; place < parts.end; ++place) {
            const float* part =
                args.workspace + (int64_t(place) * args.heads + head) * (dim + 2);
            merge(sums, weight, largest, part, part[dim], part[dim + 1], dim);
        }
        write_out(args, int64_t(parts.token) * args.heads + head, sums, weight);
    }
}

}  // namespace infercore::INFERCORE_ISA
