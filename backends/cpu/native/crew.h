// Threads that go through the phases of one program together.
#pragma once

namespace infercore {

// What a crew runs: phases one after another, the tasks of one in any order on any thread.
class Phases {
  public:
    virtual ~Phases() = default;

    // Sets up the next phase: how many tasks it has, 0 where nothing is left. By one thread, after
    // every task before it.
    virtual int next() = 0;

    // One task of the phase that was set up last.
    virtual void task(int index) = 0;
};

// Runs all phases on the pool's threads, and returns after the last. Whoever finishes a phase opens
// the next one, and runs it on the spot if it is a single task, so nothing goes back and forth for
// it. Nobody waits for a thread that has taken no task: a phase ends without those that are late.
void run_phases(Phases& phases);

}  // namespace infercore
