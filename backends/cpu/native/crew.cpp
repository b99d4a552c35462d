#include "crew.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "pool.h"
#include "waiting.h"

namespace infercore {
namespace {

// How long a thread looks for the next phase; then it sleeps. It does not yield: on busy cores that
// costs it its turn, where a sleeper is woken at once.
constexpr auto SPIN = std::chrono::microseconds(50);

class Crew {
  public:
    explicit Crew(Phases& phases) : phases_(phases) { advance(); }

    bool over() const { return ticket_.load() == OVER; }

    void work() {
        for (uint64_t now = ticket_.load(); now != OVER; now = ticket_.load()) {
            if (next(now) == count(now)) {
                wait(now);
            } else if (ticket_.compare_exchange_weak(now, now + ONE)) {
                phases_.task(next(now));
                if (done_.fetch_add(1) + 1 == count(now)) advance();
            }
        }
    }

  private:
    // A ticket names the phase, its next task and how many there are, so that one exchange takes a
    // task and no thread can take one of a phase that is over.
    static constexpr int COUNT_BITS = 20, NEXT_BITS = 20;
    static constexpr uint64_t ONE = uint64_t(1) << COUNT_BITS;
    static constexpr uint64_t MASK = ONE - 1, OVER = ~uint64_t(0);

    static int count(uint64_t ticket) { return int(ticket & MASK); }
    static int next(uint64_t ticket) { return int(ticket >> COUNT_BITS & MASK); }

    // Opens the next phase that has tasks to share.
    void advance() {
        int tasks = phases_.next();
        for (; tasks == 1; tasks = phases_.next()) phases_.task(0);
        done_.store(0);
        ++phase_;
        ticket_.store(tasks == 0 ? OVER : phase_ << (COUNT_BITS + NEXT_BITS) | uint64_t(tasks));
        if (asleep_.load() > 0) {
            // a thread between its last look and its sleep holds this lock
            { std::lock_guard<std::mutex> lock(sleepers_); }
            wake_.notify_all();
        }
    }

    void wait(uint64_t seen) {
        const auto changed = [&] { return ticket_.load() != seen; };
        if (wait_awake(changed, SPIN, SPIN)) return;
        std::unique_lock<std::mutex> lock(sleepers_);
        asleep_.fetch_add(1);
        wake_.wait(lock, changed);
        asleep_.fetch_sub(1);
    }

    Phases& phases_;
    uint64_t phase_ = 0;  // of whoever opens the next
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> asleep_{0};
    std::mutex sleepers_;
    std::condition_variable wake_;
};

}  // namespace

void run_phases(Phases& phases) {
    Crew crew(phases);
    if (!crew.over()) parallel(threads(), [&](int) { crew.work(); });
}

}  // namespace infercore
