#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace infercore {

namespace portable {
extern const Kernels TABLE;
}
namespace avx2 {
extern const Kernels TABLE;
}
namespace avx512 {
extern const Kernels TABLE;
}

namespace {

bool has_avx2() {
#ifdef INFERCORE_HAS_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

bool has_avx512() {
#ifdef INFERCORE_HAS_AVX512
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

struct Sets {
    const Kernels* table[4] = {};
    int count = 0;

    Sets() {
#ifdef INFERCORE_HAS_AVX512
        if (has_avx512()) table[count++] = &avx512::TABLE;
#endif
#ifdef INFERCORE_HAS_AVX2
        if (has_avx2()) table[count++] = &avx2::TABLE;
#endif
        table[count++] = &portable::TABLE;
    }
};

const Sets& sets() {
    static const Sets found;
    return found;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> table{sets().table[0]};
    return table;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool use_isa(const char* name) {
    for (int i = 0; i < sets().count; ++i) {
        if (std::strcmp(sets().table[i]->name, name) != 0) continue;
        chosen().store(sets().table[i]);
        return true;
    }
    return false;
}

const char* isa_name(int index) { return index < sets().count ? sets().table[index]->name : nullptr; }

}  // namespace infercore
