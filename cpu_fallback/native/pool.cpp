#include "pool.h"

#include <chrono>

namespace bitnet {
namespace {

using Clock = std::chrono::steady_clock;
// Longer than the serial stretches within a step, short enough not to be felt by the process's other threads.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr uint64_t kClosed = 0xffffffff;  // no item can be claimed

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// True as soon as `ready` is, false after kSpin.
template <class Ready>
bool spin_until(const Ready& ready) {
    const auto until = Clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            relax();
        }
    } while (Clock::now() < until);
    return false;
}

}  // namespace

Pool::~Pool() {
    ending_.store(true);
    for (auto& worker : workers_) {
        { std::lock_guard<std::mutex> lock(worker->mutex); }
        worker->wake.notify_one();
        worker->thread.join();
    }
}

void Pool::resize(int threads) {
    while (int(workers_.size()) + 1 < threads) {
        auto worker = std::make_unique<Worker>();
        worker->thread = std::thread([this, self = worker.get(), id = int(workers_.size()) + 1] { live(*self, id); });
        workers_.push_back(std::move(worker));
    }
    threads_.store(threads, std::memory_order_relaxed);
}

void Pool::run(int items, Function function, const void* state) {
    if (threads() == 1 || items <= 1) {
        for (int item = 0; item < items; ++item) function(state, item, 0);
        return;
    }
    const uint64_t next = ((ticket_.load() >> 32) + 1) << 32;
    ticket_.store(next | kClosed);  // from here no worker can claim with what it read of the last job
    items_.store(items, std::memory_order_relaxed);
    function_.store(function, std::memory_order_relaxed);
    state_.store(state, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(next);
    wake_parked();
    while (work_on_one(0)) {
    }
    const auto finished = [&] { return done_.load(std::memory_order_acquire) == items; };
    while (!spin_until(finished)) std::this_thread::yield();
}

bool Pool::work_on_one(int worker) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        const uint64_t item = ticket & kClosed;
        const Function function = function_.load(std::memory_order_relaxed);
        const void* state = state_.load(std::memory_order_relaxed);
        if (item >= uint64_t(items_.load(std::memory_order_relaxed)) || worker >= threads()) return false;
        if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            function(state, int(item), worker);
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }
}

bool Pool::has_work(int worker) const {
    return (ticket_.load() & kClosed) < uint64_t(items_.load(std::memory_order_relaxed)) && worker < threads();
}

void Pool::live(Worker& self, int worker) {
    const auto needed = [&] { return has_work(worker) || ending_.load(); };
    while (!ending_.load()) {
        while (work_on_one(worker)) {
        }
        if (spin_until(needed)) continue;
        std::unique_lock<std::mutex> lock(self.mutex);
        self.parked.store(true);  // before the look at the ticket: whoever opens a job after that look sees the flag
        self.wake.wait(lock, needed);
        self.parked.store(false);
    }
}

void Pool::wake_parked() {
    for (int i = 0; i + 1 < threads(); ++i) {
        Worker& worker = *workers_[size_t(i)];
        if (!worker.parked.load()) continue;
        { std::lock_guard<std::mutex> lock(worker.mutex); }
        worker.wake.notify_one();
    }
}

}  // namespace bitnet
