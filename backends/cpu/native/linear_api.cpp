// The C interface to matrix products. Callers keep what they pass alive until the call returns.
#include <cstdlib>
#include <cstring>

#include "dispatch.h"
#include "pool.h"

namespace infercore {
namespace {

// Nanoseconds that a task should take at least, so that handing it out costs little beside it, at
// what one core does in a nanosecond: bytes of weights read, products added.
constexpr double TASK_NS = 8000, BYTES_PER_NS = 8, PRODUCTS_PER_NS = 16;
constexpr int TASKS_PER_THREAD = 8;  // so that a thread that was held up leaves work to others
constexpr int64_t SERIAL = 100000;   // numbers that are sooner copied than shared out
constexpr int TOGETHER = 4;          // panels that a kernel may take at once

// x in the weight's order, where it is not so already. Kept by each thread.
class Scratch {
  public:
    ~Scratch() { std::free(memory_); }

    void* take(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            const size_t size = (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
            memory_ = std::aligned_alloc(LINE_BYTES, size);
            size_ = memory_ == nullptr ? 0 : size;
        }
        return memory_;
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

thread_local Scratch scratch;

inline void convert(float x, float& out) { out = x; }
inline void convert(uint16_t x, uint16_t& out) { out = x; }
inline void convert(uint16_t bfloat16, float& out) {
    const uint32_t word = static_cast<uint32_t>(bfloat16) << 16;
    std::memcpy(&out, &word, sizeof out);
}

// One row of x as the panels of `weight` meet it.
template <class In, class Out>
void arrange(const LinearWeight& weight, const In* x, Out* out) {
    const int count = weight.lines * steps(weight.kind);
    std::memset(out, 0, sizeof(Out) * static_cast<size_t>(count));
    if (weight.columns != nullptr) {
        for (int i = 0; i < count; ++i)
            if (weight.columns[i] >= 0) convert(x[weight.columns[i]], out[i]);
        return;
    }
    for (int i = 0; i < weight.k; ++i) convert(x[i], out[i]);
}

template <class In, class Out>
const void* arranged(const LinearWeight& weight, const void* x, int m) {
    const int64_t count = static_cast<int64_t>(weight.lines) * steps(weight.kind);
    Out* const out = static_cast<Out*>(scratch.take(static_cast<size_t>(m * count) * sizeof(Out)));
    if (out == nullptr) return nullptr;
    const auto row = [&](int i) {
        arrange(weight, static_cast<const In*>(x) + int64_t(i) * weight.k, out + i * count);
    };
    if (m * count > SERIAL)
        parallel(m, row);
    else
        for (int i = 0; i < m; ++i) row(i);
    return out;
}

// Panels per task.
int grain(const LinearWeight& weight, int panels, int m) {
    const double bytes = static_cast<double>(weight.lines) * LINE_BYTES;
    const double products = static_cast<double>(weight.k) * PANEL * m;
    const double ns = bytes / BYTES_PER_NS + products / PRODUCTS_PER_NS;
    const int most = threads() * TASKS_PER_THREAD;
    const int fair = (panels + most - 1) / most, least = static_cast<int>(TASK_NS / ns) + 1;
    const int count = fair > least ? fair : least;
    return count < TOGETHER ? count : (count + TOGETHER - 1) / TOGETHER * TOGETHER;
}

// Panels of all, shared out among the threads.
void multiply(const LinearArgs& args) {
    const int panels = (args.weight->n + PANEL - 1) / PANEL;
    const int each = grain(*args.weight, panels, args.m);
    const auto run = kernels().linear;
    parallel((panels + each - 1) / each, [&](int task) {
        const int begin = task * each, end = begin + each;
        run(args, begin, end < panels ? end : panels);
    });
}

// y = x Wᵀ with x rounded to int8. False where there is no memory for that.
bool multiply_rounded(const LinearWeight& weight, const void* x, bool bfloat16, void* y, int m) {
    const int32_t count = blocks(weight);
    const int64_t stride = (code_bytes(weight) + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    const size_t numbers = static_cast<size_t>(m) * count;
    void* const memory = scratch.take(m * stride + 2 * numbers * sizeof(float));
    if (memory == nullptr) return m == 0;
    float* const scales = reinterpret_cast<float*>(static_cast<char*>(memory) + m * stride);
    int8_t* const codes = static_cast<int8_t*>(memory);
    const RoundedRows rows = {codes, stride, scales, scales + numbers, count};
    const RoundArgs round = {&weight, x, weight.k, bfloat16, rows};
    const auto run = kernels().round_rows;
    if (m * stride > SERIAL)
        parallel(m, [&](int row) { run(round, row, row + 1); });
    else
        run(round, 0, m);
    multiply({&weight, nullptr, 0, y, weight.n, 0, bfloat16, m, &rows});
    return true;
}

// The bits of one weight. 4-bit cells lie as kinds keep them: even columns in the low halves.
uint32_t bits_of(int32_t kind, const uint8_t* row, int column) {
    uint32_t word = 0;
    if (kind == FLOAT32)
        std::memcpy(&word, row + 4 * static_cast<int64_t>(column), 4);
    else if (kind <= FLOAT16)
        std::memcpy(&word, row + 2 * static_cast<int64_t>(column), 2);
    else if (kind == INT8)
        word = row[column];
    else
        word = row[column / 2] >> (column % 2 * 4) & 15;
    return word;
}

// The `output`-th of a panel's rows.
void pack_row(const LinearWeight& weight, const uint8_t* row, int output, uint8_t* panel) {
    const int count = steps(weight.kind);
    if (weight.kind == FLOAT16) {
        for (int column = 0; column < weight.k; ++column)
            std::memcpy(panel + (column * PANEL + output) * 2, row + column * 2, 2);
        return;
    }
    for (int line = 0; line < weight.lines; ++line) {
        uint32_t packed = 0;
        for (int step = 0; step < count; ++step) {
            const int place = line * count + step;
            const int column = weight.columns != nullptr ? weight.columns[place] : place;
            if (column < 0 || column >= weight.k) continue;
            const int shift = count < 8 ? 32 / count * step : step < 4 ? 8 * step : 8 * step - 28;
            packed |= bits_of(weight.kind, row, column) << shift;
        }
        std::memcpy(panel + line * LINE_BYTES + 4 * output, &packed, 4);
    }
}

}  // namespace
}  // namespace infercore

using namespace infercore;

extern "C" {

void infercore_set_threads(int count) { set_threads(count); }
const char* infercore_isa(void) { return kernels().name; }
const char* infercore_isa_name(int index) { return isa_name(index); }
int infercore_use_isa(const char* name) { return use_isa(name); }

// Fills weight->panels from rows of W, `stride` bytes apart, which are float32, 16-bit floats,
// uint8[K] or uint8[ceil(K / 2)] as the kind has them.
void infercore_linear_pack(const LinearWeight* weight, const uint8_t* rows, int64_t stride) {
    uint8_t* const panels = const_cast<uint8_t*>(weight->panels);
    parallel((weight->n + PANEL - 1) / PANEL, [&](int panel) {
        uint8_t* const out = panels + static_cast<int64_t>(panel) * weight->lines * LINE_BYTES;
        std::memset(out, 0, static_cast<size_t>(weight->lines) * LINE_BYTES);
        for (int i = 0; i < PANEL && panel * PANEL + i < weight->n; ++i)
            pack_row(*weight, rows + (panel * PANEL + i) * stride, i, out);
    });
}

// What the rows of x are; PAIRS_OF_X also where the instruction set has to emulate it.
enum { FLOAT32_X = 0, BFLOAT16_X = 1, PAIRS_OF_X = 2 };

// y [m, n] = x [m, k] Wᵀ, both without gaps. y is float32 where x is, else bfloat16.
// x is rounded to int8 where the weight says so.
// 1 where there is no memory for x in the weight's order, else 0.
int infercore_linear(const LinearWeight* weight, const void* x, int form, void* y, int m) {
    if (weight->rounds) return !multiply_rounded(*weight, x, form != FLOAT32_X, y, m);
    const int64_t count = static_cast<int64_t>(weight->lines) * steps(weight->kind);
    const bool pairs = weight->kind == BFLOAT16 &&
                       (form == PAIRS_OF_X || (form == BFLOAT16_X && kernels().pairs));
    const bool in_order = weight->columns == nullptr && count == weight->k;
    const void* rows = x;
    if (pairs) {
        if (!in_order || reinterpret_cast<uintptr_t>(x) % sizeof(uint32_t) != 0)
            rows = arranged<uint16_t, uint16_t>(*weight, x, m);
    } else if (form != FLOAT32_X) {
        rows = arranged<uint16_t, float>(*weight, x, m);
    } else if (!in_order) {
        rows = arranged<float, float>(*weight, x, m);
    }
    if (rows == nullptr) return m > 0;
    const int64_t stride = pairs ? count / 2 : count;
    const LinearArgs args = {weight, rows, stride, y, weight->n, pairs, form != FLOAT32_X, m};
    multiply(args);
    return 0;
}

}
