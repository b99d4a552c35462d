// The table of one instruction set; compiled once for each, as the kernels are.
#include "dispatch.h"

namespace infercore::INFERCORE_ISA {

#define INFERCORE_TEXT(name) #name
#define INFERCORE_NAME(name) INFERCORE_TEXT(name)

extern const Kernels TABLE;
const Kernels TABLE = {
    INFERCORE_NAME(INFERCORE_ISA),
#if defined(__AVX512BF16__)
    true,
#else
    false,
#endif
    linear,
    round_rows,
    attention_write,
    attention_attend,
    attention_merge,
    norm,
    rope,
    activate,
    elementary,
    embed,
    arrange,
    add_bias,
    linear_rows,
};

}  // namespace infercore::INFERCORE_ISA
