// Runs a lowered decoder; see step.h.
#include <algorithm>

#include "crew.h"
#include "dispatch.h"
#include "pool.h"
#include "step.h"

namespace infercore {
namespace {

// What one core does in a nanosecond, for shares of about TASK_NS: bytes of weights read, products
// added, numbers of activations changed.
constexpr double TASK_NS = 4000, BYTES_PER_NS = 10, PRODUCTS_PER_NS = 32, NUMBERS_PER_NS = 4;
constexpr int TASKS_PER_THREAD = 8;  // so that a thread that was held up leaves work to others
constexpr int TOGETHER = 4;          // panels that a kernel may take at once
constexpr int MOST_TASKS = 1 << 16;

int up(int count, int unit) { return (count + unit - 1) / unit; }

bool by_rows(Op op) { return op < Op::LINEAR; }

class Run : public Phases {
  public:
    Run(const Program& program, const Step& step, int begin, int end)
        : program_(program), step_(step), at_(begin), end_(end) {}

    int next() override {
        if (merging()) return count_;
        while (at_ < end_) {
            first_ = program_.instructions + at_;
            int last = at_ + 1;
            if (by_rows(first_->op))
                while (last < end_ && by_rows(program_.instructions[last].op)) ++last;
            length_ = last - at_;
            at_ = last;
            share();
            if (count_ > 0) return count_;
        }
        return 0;
    }

    void task(int index) override {
        const int begin = std::min(all_, index * each_), end = std::min(all_, begin + each_);
        if (merge_) return kernel_.attention_merge(attention(*first_), begin, end);
        if (first_->op == Op::LINEAR) return product(*first_, first_->out, begin, end);
        if (first_->op == Op::ACTIVATED) return activated(*first_, begin, end);
        if (first_->op == Op::ATTEND)
            return kernel_.attention_attend(attention(*first_), begin, end);
        for (int i = 0; i < length_; ++i) rows(first_[i], begin, end);
    }

  private:
    const Program& program_;
    const Step& step_;
    const Kernels& kernel_ = kernels();
    const int threads_ = threads();
    int at_, end_;
    // the phase that is open: `length_` instructions over [0, all_), `each_` to a task
    const Instruction* first_ = nullptr;
    int length_ = 0, all_ = 0, each_ = 1, count_ = 0;
    bool merge_ = false;

    // After an attention, what merges its partitions, if there are any.
    bool merging() {
        const bool attended = first_ != nullptr && first_->op == Op::ATTEND && !merge_;
        merge_ = false;
        if (!attended) return false;
        const AttentionArgs& planned = *step_.groups[first_->attend.group];
        if (planned.num_merges == 0) return false;
        merge_ = true;
        split(planned.num_merges * first_->attend.heads, 1);
        return true;
    }

    // Shares of at least `least`, and not more of them than threads can make use of.
    void split(int all, int least) {
        const int fair = up(all, threads_ * TASKS_PER_THREAD);
        all_ = all;
        each_ = threads_ == 1 ? std::max(1, all) : std::max({1, fair, least});
        count_ = up(all, each_);
    }

    void share() {
        const Instruction& one = *first_;
        if (one.op == Op::LINEAR || one.op == Op::ACTIVATED)
            return share_panels(*one.linear.weight);
        if (one.op == Op::ATTEND) {
            const AttentionArgs& planned = *step_.groups[one.attend.group];
            all_ = planned.num_tiles * planned.kv_heads;
            // each as it comes: the longest stand first
            each_ = threads_ == 1 ? std::max(1, all_) : up(all_, MOST_TASKS) + (all_ == 0);
            count_ = up(all_, each_);
            return;
        }
        double numbers = 0;
        for (int i = 0; i < length_; ++i) numbers += first_[i].out.stride + first_[i].x.stride;
        split(step_.tokens, int(TASK_NS * NUMBERS_PER_NS / (numbers + 1)) + 1);
    }

    void share_panels(const LinearWeight& weight) {
        const double bytes = double(weight.lines) * LINE_BYTES;
        const double products = double(weight.k) * PANEL * step_.tokens;
        const double ns = bytes / BYTES_PER_NS + products / PRODUCTS_PER_NS;
        int panels = up(weight.n, PANEL);
        if (first_->op == Op::ACTIVATED && first_->linear.gated) panels /= 2;
        split(panels, int(TASK_NS / ns) + 1);
        if (each_ < all_) each_ = up(each_, TOGETHER) * TOGETHER;
        count_ = up(all_, each_);
    }

    DType dtype() const { return program_.bfloat16 ? DType::BFLOAT16 : DType::FLOAT32; }
    int size() const { return program_.bfloat16 ? 2 : 4; }

    uint8_t* at(const Operand& operand) const {
        if (operand.place == NOWHERE) return nullptr;
        uint8_t* const base = operand.place == OUTPUT ? static_cast<uint8_t*>(step_.output)
                                                      : step_.arena + operand.place * step_.tokens;
        return base + int64_t(operand.first) * size();
    }

    // Of tokens [begin, end).
    void rows(const Instruction& one, int begin, int end) const {
        switch (one.op) {
            case Op::EMBED:
                return kernel_.embed({step_.ids, step_.positions, one.embed, at(one.out),
                                      one.out.stride, program_.bfloat16 != 0},
                                     begin, end);
            case Op::NORM: return norm(one, begin, end);
            case Op::ARRANGE: {
                const bool pairs = one.linear.x_form == PAIRS_OF_BFLOAT16;
                return kernel_.arrange({one.linear.weight, at(one.x), at(one.out), one.x.stride,
                                        program_.bfloat16 != 0, pairs},
                                       begin, end);
            }
            case Op::ROUND:
                return kernel_.round_rows({one.linear.weight, at(one.x), one.x.stride,
                                           program_.bfloat16, rounded(one.linear, one.out)},
                                          begin, end);
            case Op::ROPE: {
                const RopeOf& of = one.rope;
                const RopeArgs args = {at(one.x), of.cos, of.sin,  at(one.out),    one.x.stride,
                                       of.heads,  of.dim, dtype(), step_.positions};
                return kernel_.rope(args, begin * of.heads, end * of.heads);
            }
            case Op::ACTIVATE: {
                const ActivateOf& of = one.activate;
                return kernel_.activate({at(one.x), at(one.out), one.x.stride, of.size,
                                         Activation(of.activation), of.gated != 0, dtype()},
                                        begin, end);
            }
            default: {
                const AttentionArgs args = attention(one);
                return kernel_.attention_write(args, begin * args.kv_heads, end * args.kv_heads);
            }
        }
    }

    void norm(const Instruction& one, int begin, int end) const {
        const NormOf& of = one.norm;
        const NormArgs args = {at(one.x),    at(one.y),    of.weight,   of.bias, at(one.out),
                               at(one.sum),  one.x.stride, of.per_token, of.size, of.weights,
                               of.centered != 0, of.eps,   dtype()};
        kernel_.norm(args, begin * of.per_token, end * of.per_token);
    }

    // What ROUND leaves at an operand: codes, then scales, then sums of all tokens.
    RoundedRows rounded(const LinearOf& of, const Operand& operand) const {
        uint8_t* const codes = at(operand);
        const int64_t stride = up(int(code_bytes(*of.weight)), LINE_BYTES) * int64_t(LINE_BYTES);
        const int32_t count = blocks(*of.weight);
        float* const scales = reinterpret_cast<float*>(codes + stride * step_.tokens);
        return {reinterpret_cast<int8_t*>(codes), stride, scales,
                scales + int64_t(count) * step_.tokens, count};
    }

    // Panels [begin, end) of a product, with its bias, to `y`.
    void product(const Instruction& one, const Operand& y, int begin, int end) const {
        const LinearOf& of = one.linear;
        const RoundedRows rows = of.x_form == ROUNDED ? rounded(of, one.x) : RoundedRows{};
        const bool pairs = of.x_form == PAIRS_OF_BFLOAT16;
        LinearArgs args = {of.weight, at(one.x),         one.x.stride / (pairs ? 2 : 1), at(y),
                           y.stride,  pairs, program_.bfloat16, step_.tokens};
        if (of.x_form == ROUNDED) args.rounded = &rows;
        kernel_.linear(args, begin, end);
        if (of.bias == nullptr) return;
        const BiasArgs bias = {at(y), of.bias, y.stride, step_.tokens, program_.bfloat16 != 0};
        kernel_.add_bias(bias, begin * PANEL, std::min(end * PANEL, of.weight->n));
    }

    // Panels of a product, of both halves where it is gated, activated while they are in the cache.
    void activated(const Instruction& one, int begin, int end) const {
        const LinearOf& of = one.linear;
        const int size = of.gated ? of.weight->n / 2 : of.weight->n, half = size / PANEL;
        product(one, one.y, begin, end);
        if (of.gated) product(one, one.y, begin + half, end + half);
        kernel_.activate({at(one.y), at(one.out), one.y.stride, size, Activation(of.activation),
                          of.gated != 0, dtype(), begin * PANEL, std::min(end * PANEL, size)},
                         0, step_.tokens);
    }

    // The group's plan, for one layer.
    AttentionArgs attention(const Instruction& one) const {
        AttentionArgs args = *step_.groups[one.attend.group];
        const int64_t dim = up(args.head_dim, KV_PANEL) * KV_PANEL;
        const int64_t numbers = args.kv_heads * args.num_blocks * args.block_size * dim;
        const int64_t bytes = numbers * (args.cache_dtype == DType::FLOAT32 ? 4 : 2);
        uint8_t* const keys = static_cast<uint8_t*>(args.keys) + 2 * bytes * one.attend.member;
        args.keys = keys;
        args.values = keys + bytes;
        args.q = args.k = at(one.x);
        args.q_stride = args.k_stride = one.x.stride;
        args.v = at(one.y);
        args.v_stride = one.y.stride;
        args.out = at(one.out);
        args.heads = one.attend.heads;
        args.scale = one.attend.scale;
        args.softcap = one.attend.softcap;
        args.dtype = dtype();
        return args;
    }
};

bool within(const int64_t* numbers, int count, int64_t limit) {
    bool inside = true;
    for (int i = 0; i < count; ++i) inside &= numbers[i] >= 0 && numbers[i] < limit;
    return inside;
}

}  // namespace
}  // namespace infercore

extern "C" {

// Whether the instruction set in use multiplies pairs of bfloat16.
int infercore_pairs(void) { return infercore::kernels().pairs; }

// Bytes that ROUND takes for each token.
int64_t infercore_rounded_bytes(const infercore::LinearWeight* weight) {
    using namespace infercore;
    const int64_t codes = up(int(code_bytes(*weight)), LINE_BYTES) * int64_t(LINE_BYTES);
    return codes + 2 * int64_t(sizeof(float)) * blocks(*weight);
}

// Instructions [begin, end) over one step. 1 where an id, 2 where a position is out of range, and
// nothing is done; else 0.
int infercore_step(const infercore::Program* program, const infercore::Step* step, int begin,
                   int end) {
    using namespace infercore;
    if (!within(step->ids, step->tokens, program->vocab)) return 1;
    if (!within(step->positions, step->tokens, program->positions)) return 2;
    Run run(*program, *step, begin, end);
    run_phases(run);
    return 0;
}
}
