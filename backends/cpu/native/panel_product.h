// Products of a few rows with pages of keys or values; see attention.h for their panels.
#pragma once

#include "attention.h"
#include "lanes.h"

namespace infercore::INFERCORE_ISA {

constexpr int PANEL_VECTORS = KV_PANEL / WIDTH;
#if defined(__AVX512F__)
constexpr int REGISTERS = 32, MOST_ROWS = 12;
#elif defined(__AVX2__)
constexpr int REGISTERS = 16, MOST_ROWS = 6;
#elif defined(__aarch64__)
constexpr int REGISTERS = 32, MOST_ROWS = 6;
#else
constexpr int REGISTERS = 16, MOST_ROWS = 3;
#endif
constexpr int MAX_RUNS = KEY_TILE / KV_PANEL;  // pages that a tile of keys lies on

inline int padded(int dim) { return (dim + KV_PANEL - 1) / KV_PANEL * KV_PANEL; }

constexpr bool fit(int rows, int panels) {
    const int vectors = panels * PANEL_VECTORS, few = rows < vectors ? rows : vectors;
    return rows * vectors + 2 * few + 1 <= REGISTERS;
}

// Panels that `rows` rows multiply at once: more sums side by side hide the latency of few rows.
constexpr int panels_of(int rows) { return fit(rows, 4) ? 4 : fit(rows, 2) ? 2 : 1; }

// sums += a[row] · line(n), for each row and vector n. What there is less of stays in registers.
template <int ROWS, int VECTORS, class Line>
inline void add_line(Floats (&sums)[ROWS][VECTORS], const float* a, int stride, const Line& line) {
    if constexpr (ROWS < VECTORS) {
        Floats factor[ROWS];
        for (int r = 0; r < ROWS; ++r) factor[r] = splat(a[r * stride]);
        for (int n = 0; n < VECTORS; ++n) {
            const Floats x = line(n);
            for (int r = 0; r < ROWS; ++r) sums[r][n] = fma(factor[r], x, sums[r][n]);
        }
    } else {
        Floats x[VECTORS];
        for (int n = 0; n < VECTORS; ++n) x[n] = line(n);
        for (int r = 0; r < ROWS; ++r) {
            const Floats factor = splat(a[r * stride]);
            for (int n = 0; n < VECTORS; ++n) sums[r][n] = fma(factor, x[n], sums[r][n]);
        }
    }
}

// sums += a[ROWS, count] · rows [first, first + count) of each panel.
template <int ROWS, int VECTORS, class T>
inline void multiply(Floats (&sums)[ROWS][VECTORS], const float* a, int stride,
                     const T* const* panels, int first, int count) {
    for (int i = 0; i < count; ++i)
        add_line(sums, a + i, stride, [&](int n) {
            const T* line = panels[n / PANEL_VECTORS] + (first + i) * KV_PANEL;
            return load(line + n % PANEL_VECTORS * WIDTH);
        });
}

// Rows come in pairs here: the first one's bits are the low half of each word.
template <int ROWS, int VECTORS>
inline void multiply(Floats (&sums)[ROWS][VECTORS], const float* a, int stride,
                     const BFloat16* const* panels, int first, int count) {
    int row = first;
    const auto words = [&](int n) {
        const BFloat16* line = panels[n / PANEL_VECTORS] + row / 2 * 2 * KV_PANEL;
        return unaligned<Words>(line + n % PANEL_VECTORS * 2 * WIDTH);
    };
    const auto low = [&](int n) { return floats(words(n) << 16); };
    const auto high = [&](int n) { return floats(words(n) & 0xffff0000); };
    const int end = first + count;
    if (row % 2 == 1 && row < end) {
        add_line(sums, a++, stride, high);
        ++row;
    }
    for (; row + 1 < end; row += 2, a += 2) {
        add_line(sums, a, stride, low);
        add_line(sums, a + 1, stride, high);
    }
    if (row < end) add_line(sums, a, stride, low);
}

// A product of rows with panels: to[row][16 · panel + column] = or += Σ a[row][k] · panel[k].
template <class T>
struct Product {
    const float* a;  // [rows, Σ count], `stride` apart
    int stride;
    float* to;  // `to_stride` apart
    int to_stride;
    bool add;  // to what stands there
    int runs;  // k runs over rows [first, first + count) of panels[0], then of panels[1], …
    int first[MAX_RUNS], count[MAX_RUNS];
    const T* panels[MAX_RUNS][MAX_DIM / KV_PANEL];

    Product(const float* a, int stride, float* to, int to_stride, bool add)
        : a(a), stride(stride), to(to), to_stride(to_stride), add(add), runs(0) {}
};

template <int ROWS, int PANELS, class T>
void block(const Product<T>& p, int panel) {
    constexpr int VECTORS = PANELS * PANEL_VECTORS;
    Floats sums[ROWS][VECTORS];
    float* const to = p.to + panel * KV_PANEL;
    for (int r = 0; r < ROWS; ++r)
        for (int n = 0; n < VECTORS; ++n)
            sums[r][n] = p.add ? load(to + r * p.to_stride + n * WIDTH) : Floats{};
    const float* a = p.a;
    for (int run = 0; run < p.runs; a += p.count[run++])
        multiply(sums, a, p.stride, p.panels[run] + panel, p.first[run], p.count[run]);
    for (int r = 0; r < ROWS; ++r)
        for (int n = 0; n < VECTORS; ++n) store(to + r * p.to_stride + n * WIDTH, sums[r][n]);
}

template <int ROWS, class T>
void product_of(const Product<T>& p, int panels) {
    constexpr int WIDE = panels_of(ROWS);
    int n = 0;
    for (; n + WIDE <= panels; n += WIDE) block<ROWS, WIDE>(p, n);
    if constexpr (WIDE >= 4)
        for (; n + 2 <= panels; n += 2) block<ROWS, 2>(p, n);
    for (; n < panels; ++n) block<ROWS, 1>(p, n);
}

template <int ROWS, class T>
void product_up_to(const Product<T>& p, int rows, int panels) {
    if (rows == ROWS) return product_of<ROWS>(p, panels);
    if constexpr (ROWS > 1) product_up_to<ROWS - 1>(p, rows, panels);
}

template <class T>
void product(Product<T>& p, int rows, int panels) {
    for (int row = 0; row < rows; row += MOST_ROWS) {
        product_up_to<MOST_ROWS>(p, min(MOST_ROWS, rows - row), panels);
        p.a += MOST_ROWS * p.stride;
        p.to += MOST_ROWS * p.to_stride;
    }
}

}  // namespace infercore::INFERCORE_ISA
