// The k largest logits of each row, ties to the lower id, and the logits of asked-for ids beside them.
#include <algorithm>
#include <limits>

#include "candidates.h"
#include "context.h"

namespace bitnet {
namespace {

float rank(float logit) { return logit != logit ? std::numeric_limits<float>::infinity() : logit; }

bool before(const Candidate& a, const Candidate& b) {
    const float x = rank(a.logit), y = rank(b.logit);
    return x != y ? x > y : a.id < b.id;
}

constexpr int32_t kRun = 64;  // logits looked at together: nearly all runs hold nothing that is large enough

// Does any of kRun logits rank above a bound that is not a NaN? Without a branch, so that the compiler takes lanes.
bool any_above(const float* logits, float bound) {
    int32_t found = 0;
    for (int32_t i = 0; i < kRun; ++i) found |= int32_t(!(logits[i] <= bound));
    return found != 0;
}

}  // namespace

// A heap whose front is the least of the best so far. Ids come in ascending order, so an equal never replaces one.
void rank_best(const float* logits, int32_t count, int32_t k, Candidate* heap) {
    if (k == 0) return;
    for (int32_t id = 0; id < k; ++id) heap[id] = {logits[id], id};
    std::make_heap(heap, heap + k, before);
    for (int32_t first = k; first < count; first += kRun) {
        const int32_t last = std::min(count, first + kRun);
        if (last - first == kRun && !any_above(logits + first, rank(heap->logit))) continue;
        for (int32_t id = first; id < last; ++id) {
            if (!(rank(logits[id]) > rank(heap->logit))) continue;
            std::pop_heap(heap, heap + k, before);
            heap[k - 1] = {logits[id], id};
            std::push_heap(heap, heap + k, before);
        }
    }
    std::sort_heap(heap, heap + k, before);
}

void head_topk(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table, int32_t rows,
               int32_t k, const int64_t* extra_ids, int32_t extra, int64_t* ids, float* logits) {
    const size_t vocab = size_t(table.rows), width = size_t(k) + size_t(extra);
    const size_t all_bytes = sizeof(float) * vocab * size_t(rows);
    // One reservation: every row's logits, then a heap a worker. head() keeps its own scratch apart.
    uint8_t* scratch = c.logit_scratch.reserve(all_bytes + sizeof(Candidate) * size_t(k) * size_t(c.pool.threads()));
    float* all = reinterpret_cast<float*>(scratch);
    Candidate* heaps = reinterpret_cast<Candidate*>(scratch + all_bytes);
    head(c, x, gain, eps, table, rows, all);
    c.pool.run(rows, [&](int row, int worker) {
        const float* from = all + size_t(row) * vocab;
        Candidate* heap = heaps + size_t(worker) * size_t(k);
        rank_best(from, table.rows, k, heap);
        int64_t* row_ids = ids + size_t(row) * width;
        float* row_logits = logits + size_t(row) * width;
        for (int32_t i = 0; i < k; ++i) row_ids[i] = heap[i].id, row_logits[i] = heap[i].logit;
        for (int32_t i = 0; i < extra; ++i) {
            const int64_t id = extra_ids[size_t(row) * size_t(extra) + size_t(i)];
            row_ids[k + i] = id;
            row_logits[k + i] = id < 0 ? -std::numeric_limits<float>::infinity() : from[id];
        }
    });
}

}  // namespace bitnet
