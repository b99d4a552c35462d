// Where finished sums go.
#pragma once

#include "linear_panel.h"

namespace infercore::INFERCORE_ISA {

constexpr int least(int a, int b) { return a < b ? a : b; }

template <class T>
inline void put(const LinearArgs& args, const float* sums, int row, int rows, int panel,
                int panels) {
    for (int m = 0; m < rows; ++m) {
        T* y = static_cast<T*>(args.y) + (row + m) * args.y_stride;
        for (int p = 0; p < panels; ++p)
            for (int i = 0; i < PANEL; i += WIDTH) {
                const Floats sum = load(sums + (m * panels + p) * PANEL + i);
                const int at = (panel + p) * PANEL + i, left = args.weight->n - at;
                if (left >= WIDTH)
                    store(y + at, sum);
                else if (left > 0)
                    store_some(y + at, sum, left);
            }
    }
}

// Rows [row, row + rows), the sums of `panels` panels [rows][panels · 16].
inline void put(const LinearArgs& args, const float* sums, int row, int rows, int panel,
                int panels) {
    if (args.y_bfloat16)
        put<BFloat16>(args, sums, row, rows, panel, panels);
    else
        put<float>(args, sums, row, rows, panel, panels);
}

}  // namespace infercore::INFERCORE_ISA
