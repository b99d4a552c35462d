// Attention as Python sees it.
#include <algorithm>

#include "attention.h"
#include "dispatch.h"
#include "pool.h"

namespace infercore {
namespace {

constexpr int TILES_PER_THREAD = 4;  // with fewer, threads would wait for the longest

struct Planner {
    AttentionArgs& args;
    AttentionTile* tiles;
    AttentionMerge* merges;

    void tile(int row, int first, int count, int part, int partial) {
        tiles[args.num_tiles++] = {row, first, count, part, partial};
    }

    int first_seen(int position) const {
        return args.window > 0 ? std::max(0, position + 1 - args.window) : 0;
    }

    void token_by_parts(int row, int token, int position) {
        const int first = first_seen(position) / PARTITION, last = position / PARTITION;
        if (first == last) return tile(row, token, 1, -1, 0);
        const int begin = args.num_partials;
        for (int part = first; part <= last; ++part) tile(row, token, 1, part, args.num_partials++);
        merges[args.num_merges++] = {token, begin, args.num_partials};
    }

    // Keys that a tile's last token reads.
    int cost(const AttentionTile& tile) const {
        if (tile.part >= 0) return PARTITION;
        const int end = args.query_start[tile.row + 1];
        const int position = args.context_len[tile.row] - end + tile.first + tile.count - 1;
        return (position + 1 - first_seen(position)) * tile.count;
    }
};

// Whether all of the numbers lie in [0, limit).
template <class T>
bool within(const T* numbers, int64_t count, int64_t limit) {
    bool inside = true;
    for (int64_t i = 0; i < count; ++i) inside &= numbers[i] >= 0 && numbers[i] < limit;
    return inside;
}

BadPlan check(const AttentionArgs& args, int rows) {
    if (!within(args.slots, args.tokens, args.num_blocks * args.block_size)) return BadPlan::SLOT;
    if (args.query_start[0] != 0 || args.query_start[rows] > args.tokens) return BadPlan::QUERIES;
    for (int row = 0; row < rows; ++row) {
        const int64_t queries = int64_t(args.query_start[row + 1]) - args.query_start[row];
        const int64_t context = args.context_len[row];
        if (queries < 0) return BadPlan::QUERIES;
        if (context < queries || context > int64_t(args.table_width) * args.block_size)
            return BadPlan::CONTEXT;
        const int32_t* table = args.block_table + int64_t(row) * args.table_width;
        const int64_t used = (context + args.block_size - 1) / args.block_size;
        if (!within(table, used, args.num_blocks)) return BadPlan::BLOCK;
    }
    return BadPlan::NONE;
}

}  // namespace

BadPlan plan_attention(AttentionArgs& args, int rows, int tile_tokens, AttentionTile* tiles,
                    AttentionMerge* merges) {
    args.tiles = tiles;
    args.merges = merges;
    args.num_tiles = args.num_merges = args.num_partials = 0;
    const BadPlan bad = check(args, rows);
    if (bad != BadPlan::NONE) return bad;
    Planner planner{args, tiles, merges};
    const bool split = threads() > 1 && rows * args.kv_heads < TILES_PER_THREAD * threads();
    for (int row = 0; row < rows; ++row) {
        const int begin = args.query_start[row], end = args.query_start[row + 1];
        if (split && end - begin == 1) {
            planner.token_by_parts(row, begin, args.context_len[row] - 1);
            continue;
        }
        for (int first = begin; first < end; first += tile_tokens)
            planner.tile(row, first, std::min(tile_tokens, end - first), -1, 0);
    }
    std::stable_sort(tiles, tiles + args.num_tiles,
                     [&](const AttentionTile& a, const AttentionTile& b) {
                         return planner.cost(a) > planner.cost(b);
                     });
    return BadPlan::NONE;
}

}  // namespace infercore

extern "C" {

// Returns a BadPlan.
int infercore_plan_attention(infercore::AttentionArgs* args, int rows, int tile_tokens,
                             infercore::AttentionTile* tiles, infercore::AttentionMerge* merges) {
    return int(infercore::plan_attention(*args, rows, tile_tokens, tiles, merges));
}

// Writes the step's keys and values of one layer, then attends.
void infercore_attention(const infercore::AttentionArgs* args) {
    using namespace infercore;
    const Kernels& kernel = kernels();
    // few tokens are written sooner than a thread is woken
    const int writers = args->tokens < 32 ? 1 : threads();
    parallel(writers, [&](int i) {
        const int64_t all = int64_t(args->tokens) * args->kv_heads;
        kernel.attention_write(*args, int(all * i / writers), int(all * (i + 1) / writers));
    });
    parallel(args->num_tiles * args->kv_heads,
             [&](int i) { kernel.attention_attend(*args, i, i + 1); });
    if (args->num_merges > 0)
        parallel(args->num_merges * args->heads,
                 [&](int i) { kernel.attention_merge(*args, i, i + 1); });
}
}
