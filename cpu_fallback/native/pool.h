// A pool of worker threads that claim the items of one job at a time from an atomic counter.
//
// The caller works too, and waits for items, never for workers: one that the system has taken off its core holds up a
// job only if it had claimed an item. Workers spin for a moment after a job (the next one of a step follows within
// microseconds), then park on a condition variable of their own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bitnet {

class Pool {
  public:
    explicit Pool(int threads) { resize(threads); }
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_.load(std::memory_order_relaxed); }

    // Use so many threads from the next job on, the caller's included. Workers are started as they are first needed and
    // stay, parked, when fewer are wanted. Throws std::system_error where the system refuses a thread.
    void resize(int threads);

    // Calls body(item, worker) once for every item in 0..items-1, worker in 0..threads()-1; returns when all are done.
    template <class Body>
    void run(int items, const Body& body) {
        run(items, [](const void* state, int item, int worker) { (*static_cast<const Body*>(state))(item, worker); },
            &body);
    }

  private:
    using Function = void (*)(const void* state, int item, int worker);

    struct Worker {
        std::thread thread;
        std::mutex mutex;
        std::condition_variable wake;
        std::atomic<bool> parked{false};
    };

    void run(int items, Function function, const void* state);
    bool work_on_one(int worker);
    bool has_work(int worker) const;
    void live(Worker& self, int worker);
    void wake_parked();

    // Upper half: the job's number; lower half: the next item. A claim is a compare-and-swap of the whole, so an item
    // of a new job is never run with the old job's function.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<int> items_{0};
    std::atomic<int> threads_{1};
    std::atomic<Function> function_{nullptr};
    std::atomic<const void*> state_{nullptr};
    alignas(64) std::atomic<int> done_{0};
    std::atomic<bool> ending_{false};
    std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace bitnet
