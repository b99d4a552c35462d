// The threads that all kernels share.
#pragma once

#include <cstdint>

namespace infercore {

// Threads that work, the caller's among them; at least 1. Not while a kernel runs.
void set_threads(int count);
int threads();

using Task = void (*)(const void* context, int index);

// Calls task(context, i) for every i in [0, count), in any order, on any thread, and returns when
// all are done. The caller works too and waits for no thread that has not taken a task, so a call
// costs little when the others sleep or the cores are busy. One call at a time, more wait; never
// from inside a task.
void run_tasks(int count, Task task, const void* context);

template <class Function>
void parallel(int count, const Function& function) {
    run_tasks(
        count, [](const void* context, int index) { (*static_cast<const Function*>(context))(index); },
        &function);
}

}  // namespace infercore
