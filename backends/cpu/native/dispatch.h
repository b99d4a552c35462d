// Which instruction set runs, chosen once when the library is loaded.
//
// Every kernel file is compiled once per instruction set, with INFERCORE_ISA naming it, and puts
// its functions into the namespace infercore::INFERCORE_ISA, so that the linker never takes one
// set's code for another's. For the same reason kernel files use no inline function of the
// standard library. Files named here or ending in _api.cpp are compiled once, for any CPU.
//
// To add a kernel: declare it in its header inside namespace infercore::INFERCORE_ISA, add a
// pointer to it to `Kernels`, and set that pointer in kernels.cpp. Call it as kernels().name(...).
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "linear_rows.h"
#include "step.h"

namespace infercore {

struct Kernels {
    const char* name;  // of the instruction set
    bool pairs;        // whether it multiplies two bfloat16 at once
    void (*linear)(const LinearArgs& args, int begin, int end);
    void (*round_rows)(const RoundArgs& args, int begin, int end);
    void (*attention_write)(const AttentionArgs& args, int begin, int end);
    void (*attention_attend)(const AttentionArgs& args, int begin, int end);
    void (*attention_merge)(const AttentionArgs& args, int begin, int end);
    void (*norm)(const NormArgs& args, int begin, int end);
    void (*rope)(const RopeArgs& args, int begin, int end);
    void (*activate)(const ActivationArgs& args, int begin, int end);
    void (*elementary)(int function, const float* x, float* out, int count);
    void (*embed)(const EmbedArgs& args, int begin, int end);
    void (*arrange)(const ArrangeArgs& args, int begin, int end);
    void (*add_bias)(const BiasArgs& args, int begin, int end);
    void (*linear_rows)(const RowsArgs& args, int begin, int end);
};

// The table of the set in use: the best that this CPU has, or the one that `use_isa` chose.
const Kernels& kernels();

// Takes a set by its name, for tests. False where this CPU or this build lacks it.
bool use_isa(const char* name);

// Names of the sets that can be used here, best first; null behind the last.
const char* isa_name(int index);

}  // namespace infercore
