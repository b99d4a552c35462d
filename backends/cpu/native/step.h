// A lowered decoder: a list of instructions that one call runs over all tokens of a step.
//
// Activations lie in one arena, [T, stride] each, in the program's dtype. Instructions that need
// one token only (by rows) and stand side by side run as one phase, split by tokens; a product is
// a phase of its own, split by outputs; so is attention, split by tiles. Every instruction is the
// same kernel that runs where nothing is lowered, so every bit is the same too.
#pragma once

#include <cstdint>

#include "attention.h"
#include "elementwise.h"
#include "linear.h"

namespace infercore {

constexpr int64_t NOWHERE = -1;  // as a place: there is no such operand
constexpr int64_t OUTPUT = -2;   // as a place: the step's result

// Numbers of the arena: a token's begin at T · place bytes + (token · stride + first) numbers.
struct Operand {
    int64_t place;  // bytes per token of what lies before; a multiple of 64
    int32_t stride;
    int32_t first;
};

enum class Op : int32_t {
    EMBED = 0,      // by rows: ids → out
    NORM = 1,       // by rows: x (+ y → sum) → out
    ARRANGE = 2,    // by rows: x → out, in the order of a weight's columns
    ROUND = 3,      // by rows: x → out, to int8 for a weight
    ROPE = 4,       // by rows: x → out
    ACTIVATE = 5,   // by rows: x → out
    WRITE = 6,      // by rows: x = keys, y = values → the cache
    LINEAR = 7,     // x → out
    ACTIVATED = 8,  // x → y, the product, → out, its activation
    ATTEND = 9,     // x = queries → out
};

struct EmbedOf {
    const void* table;      // [rows, size]
    const void* positions;  // [.., size], added; or null
    float scale;            // multiplies the table's rows
    int32_t size;
};

struct NormOf {
    const float* weight;
    const float* bias;  // or null
    int32_t per_token, size, weights, centered;
    float eps;
};

struct RopeOf {
    const float* cos;  // [positions, dim]
    const float* sin;
    int32_t heads, dim;
};

struct ActivateOf {
    int32_t size, activation, gated;
};

// ARRANGE, ROUND, LINEAR and ACTIVATED. x_form: what the product reads.
struct LinearOf {
    const LinearWeight* weight;
    const void* bias;    // [n], added to the product as it is stored; or null
    int32_t x_form;      // of XForm
    int32_t activation;  // of ACTIVATED
    int32_t gated;       // its output has half of n, which is a multiple of two panels
};

enum XForm : int32_t { FLOATS = 0, PAIRS_OF_BFLOAT16 = 1, ROUNDED = 2 };

struct AttendOf {
    int32_t group, member, heads;  // of the caches, and in it
    float scale, softcap;
};

struct Instruction {
    Op op;
    Operand x, y, out, sum;
    union {
        EmbedOf embed;
        NormOf norm;
        RopeOf rope;
        ActivateOf activate;
        LinearOf linear;
        AttendOf attend;
    };
};

// What does not change from step to step.
struct Program {
    const Instruction* instructions;
    int32_t bfloat16;   // else float32
    int32_t vocab;      // ids are below
    int32_t positions;  // and positions below this
};

// One step. groups: planned, with `keys` the first layer's keys and layers after one another.
struct Step {
    const int64_t* ids;        // [T]
    const int64_t* positions;  // [T]
    uint8_t* arena;            // at a multiple of 64
    void* output;
    const AttentionArgs* const* groups;
    int32_t tokens;
};

// What a program needs beside the other kernels.
struct EmbedArgs {
    const int64_t *ids, *positions;
    EmbedOf of;
    void* out;       // [T, size]
    int32_t stride;  // of out
    bool bfloat16;
};

struct ArrangeArgs {
    const LinearWeight* weight;
    const void* x;  // bfloat16 or float32, as it is stored; tokens `stride` numbers apart
    void* out;      // [T, lines · steps], bfloat16 for pairs, else float32
    int64_t stride;
    bool bfloat16, pairs;
};

struct BiasArgs {
    void* y;  // tokens `stride` numbers apart
    const void* bias;
    int64_t stride;
    int32_t tokens;
    bool bfloat16;
};

}  // namespace infercore

#ifdef INFERCORE_ISA
namespace infercore::INFERCORE_ISA {

void embed(const EmbedArgs& args, int begin, int end);      // tokens [begin, end)
void arrange(const ArrangeArgs& args, int begin, int end);  // tokens [begin, end)
void add_bias(const BiasArgs& args, int begin, int end);    // y += bias, columns [begin, end)

}  // namespace infercore::INFERCORE_ISA
#endif
