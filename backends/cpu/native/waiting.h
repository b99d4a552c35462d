// How a thread waits for another: awake for a while, since work comes and goes in microseconds.
#pragma once

#include <sched.h>

#include <chrono>

namespace infercore {

using Clock = std::chrono::steady_clock;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Calls `ready` until it is true or the time is up, then says which; lets others have the core
// between `spin` and `patience`.
template <class Ready>
bool wait_awake(const Ready& ready, Clock::duration spin, Clock::duration patience) {
    constexpr int LOOKS = 32;  // between two readings of the clock
    const auto start = Clock::now();
    bool spinning = true;
    while (true) {
        for (int i = 0; i < LOOKS; ++i) {
            if (ready()) return true;
            if (spinning) pause();
        }
        const auto waited = Clock::now() - start;
        if (waited > patience) return false;
        spinning = waited < spin;
        if (!spinning) sched_yield();
    }
}

}  // namespace infercore
