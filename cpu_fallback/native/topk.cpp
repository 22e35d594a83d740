// The k largest logits of each row, ties to the lower id, and the logits of asked-for ids beside them.
#include <algorithm>
#include <limits>

#include "candidates.h"
#include "context.h"
#include "screening.h"

namespace bitnet {
namespace {

float rank(float logit) { return logit != logit ? std::numeric_limits<float>::infinity() : logit; }

bool before(const Candidate& a, const Candidate& b) {
    const float x = rank(a.logit), y = rank(b.logit);
    return x != y ? x > y : a.id < b.id;
}

constexpr int32_t kRun = 64;  // logits looked at together: nearly all runs hold nothing that is large enough

// Does any of kRun logits reach a bound that is not a NaN? Without a branch, so that the compiler takes lanes.
bool any_reaches(const float* logits, float bound) {
    int32_t found = 0;
    for (int32_t i = 0; i < kRun; ++i) found |= int32_t(!(logits[i] < bound));
    return found != 0;
}

constexpr float kNone = -std::numeric_limits<float>::infinity();

}  // namespace

void Best::offer(const Candidate& candidate) {
    if (size_ < k_) {
        heap_[size_++] = candidate;
        if (size_ == k_) std::make_heap(heap_, heap_ + k_, before);
    } else if (k_ > 0 && before(candidate, heap_[0])) {
        std::pop_heap(heap_, heap_ + k_, before);
        heap_[k_ - 1] = candidate;
        std::push_heap(heap_, heap_ + k_, before);
    }
}

float Best::bound() const { return size_ < k_ ? kNone : k_ == 0 ? -kNone : rank(heap_[0].logit); }

int32_t Best::sort() {
    std::sort(heap_, heap_ + size_, before);
    return size_;
}

void rank_best(const float* logits, int32_t count, int32_t k, Candidate* heap) {
    Best best(heap, k);
    for (int32_t first = 0; first < count; first += kRun) {
        const int32_t last = std::min(count, first + kRun);
        if (last - first == kRun && !any_reaches(logits + first, best.bound())) continue;
        for (int32_t id = first; id < last; ++id) best.offer({logits[id], id});
    }
    best.sort();
}

namespace {

// Where head_topk puts what it finds: k best and `extra` asked-for ids a row.
struct Found {
    int32_t k, extra;
    const int64_t* extra_ids;
    int64_t* ids;
    float* logits;

    template <class LogitOf>
    void put(int32_t row, const Candidate* best, const LogitOf& logit_of) const {
        const size_t first = size_t(row) * size_t(k + extra);
        for (int32_t i = 0; i < k; ++i) ids[first + size_t(i)] = best[i].id, logits[first + size_t(i)] = best[i].logit;
        for (int32_t i = 0; i < extra; ++i) {
            const int64_t id = extra_ids[size_t(row) * size_t(extra) + size_t(i)];
            ids[first + size_t(k + i)] = id;
            logits[first + size_t(k + i)] = id < 0 ? kNone : logit_of(int32_t(id));
        }
    }
};

void topk_of_screened(bn_context& c, const bn_quantized& q, const bn_table& table, const Found& found) {
    const size_t rows = size_t(q.tokens), k = size_t(found.k);
    Screening screening(c, q, table, found.k);
    Carver measure(nullptr);
    screening.carve(measure);
    const size_t own = measure.used();
    Carver carver(c.logit_scratch.reserve(own + sizeof(Candidate) * k * rows));
    screening.carve(carver);
    Candidate* best = carver.take<Candidate>(k * rows);
    screening.run();
    screening.find([&](int32_t) { return found.k; });
    c.pool.run(q.tokens, [&](int row, int) {
        Candidate* own_best = best + size_t(row) * k;
        Best all(own_best, found.k);
        screening.offer_found(row, all);
        all.sort();
        found.put(row, own_best, [&](int32_t id) { return screening.logit(row, id); });
    });
}

}  // namespace

void head_topk(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table, int32_t rows,
               int32_t k, const int64_t* extra_ids, int32_t extra, int64_t* ids, float* logits) {
    const Found found{k, extra, extra_ids, ids, logits};
    const bn_quantized q = quantize_for_head(c, x, gain, eps, table.width, rows);
    if (can_screen(q, table, k)) return topk_of_screened(c, q, table, found);
    const size_t vocab = size_t(table.rows), all_bytes = sizeof(float) * vocab * size_t(rows);
    // One reservation: every row's logits, then a heap a worker.
    uint8_t* scratch = c.logit_scratch.reserve(all_bytes + sizeof(Candidate) * size_t(k) * size_t(c.pool.threads()));
    float* all = reinterpret_cast<float*>(scratch);
    Candidate* heaps = reinterpret_cast<Candidate*>(scratch + all_bytes);
    head_of(c, q, table, all);
    c.pool.run(rows, [&](int row, int worker) {
        const float* from = all + size_t(row) * vocab;
        Candidate* heap = heaps + size_t(worker) * size_t(k);
        rank_best(from, table.rows, k, heap);
        found.put(row, heap, [&](int32_t id) { return from[id]; });
    });
}

}  // namespace bitnet
