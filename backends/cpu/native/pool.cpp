#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "waiting.h"

namespace infercore {
namespace {

// How long a thread without work looks for it: first without leaving its core, then letting others
// have it in between, so that a step's many short products find it awake; then it sleeps.
constexpr auto SPIN = std::chrono::microseconds(20);
constexpr auto YIELD = std::chrono::microseconds(1000);
// How long a caller looks for the end of what others took. It does not yield: on busy cores that
// costs it its turn, where a sleeper is woken at once.
constexpr auto FINISH = std::chrono::microseconds(50);

class Pool {
  public:
    ~Pool() = delete;  // it lives as long as the process, whose exit takes the threads with it

    void resize(int count) {
        std::lock_guard<std::mutex> one_caller(callers_);
        {
            std::lock_guard<std::mutex> lock(sleepers_);
            leaving_.store(true);
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
        leaving_.store(false);
        for (int i = 1; i < count; ++i) threads_.emplace_back([this] { work(); });
        size_.store(count);
    }

    int size() const { return size_.load(); }

    void run(int count, Task task, const void* context) {
        std::lock_guard<std::mutex> one_caller(callers_);
        if (threads_.empty() || count == 1) {
            for (int i = 0; i < count; ++i) task(context, i);
            return;
        }
        task_ = task;
        context_ = context;
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(ticket(0, count));
        if (asleep_.load() > 0) {
            // a thread between its last look and its sleep holds this lock
            { std::lock_guard<std::mutex> lock(sleepers_); }
            wake_.notify_all();
        }
        while (take()) {
        }
        const auto finished = [&] { return done_.load() == count; };
        if (wait_awake(finished, FINISH, FINISH)) return;
        std::unique_lock<std::mutex> lock(sleepers_);
        waiting_.store(true);
        finished_.wait(lock, finished);
        waiting_.store(false);
    }

  private:
    // A ticket names the next task and how many there are, so that one exchange takes a task and
    // no thread can take one of a call that is over.
    static uint64_t ticket(uint64_t next, uint64_t count) { return next << 32 | count; }
    static bool open(uint64_t ticket) { return ticket >> 32 < (ticket & 0xffffffff); }

    bool take() {
        uint64_t now = ticket_.load();
        while (open(now)) {
            if (!ticket_.compare_exchange_weak(now, now + ticket(1, 0))) continue;
            task_(context_, static_cast<int>(now >> 32));
            const bool last = done_.fetch_add(1) + 1 == static_cast<int>(now & 0xffffffff);
            if (last && waiting_.load()) {
                { std::lock_guard<std::mutex> lock(sleepers_); }
                finished_.notify_one();
            }
            return true;
        }
        return false;
    }

    void work() {
        while (!leaving_.load()) {
            const auto ready = [this] { return leaving_.load() || open(ticket_.load()); };
            if (!wait_awake(ready, SPIN, YIELD)) sleep(ready);
            while (take()) {
            }
        }
    }

    template <class Ready>
    void sleep(const Ready& ready) {
        std::unique_lock<std::mutex> lock(sleepers_);
        asleep_.fetch_add(1);
        wake_.wait(lock, ready);
        asleep_.fetch_sub(1);
    }

    std::mutex callers_;
    Task task_ = nullptr;
    const void* context_ = nullptr;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> asleep_{0};
    std::atomic<bool> leaving_{false};
    std::atomic<int> size_{1};
    std::atomic<bool> waiting_{false};  // the caller sleeps
    std::mutex sleepers_;
    std::condition_variable wake_, finished_;
    std::vector<std::thread> threads_;
};

Pool& pool() {
    static Pool* const the_pool = new Pool;
    return *the_pool;
}

}  // namespace

void set_threads(int count) { pool().resize(count < 1 ? 1 : count); }
int threads() { return pool().size(); }
void run_tasks(int count, Task task, const void* context) { pool().run(count, task, context); }

}  // namespace infercore
