// The plain chain of samplers, for all rows at once: penalties, top_k, top_p, min_p, temperature, one draw.
//
// What service/engine/sampler.py does for any wing and any chain, in the same order and with the same arithmetic:
// penalties in fp32, everything after them in doubles, every sum over the candidates one after the other. Here it costs
// a row some microseconds and no interpreter.
#include <algorithm>
#include <cmath>
#include <limits>

#include "candidates.h"
#include "context.h"

namespace bitnet {
namespace {

// Penalises each distinct token of the window once; `sorted` has room for it.
void penalise(const bn_draw& draw, const int64_t* window, int32_t length, int32_t* sorted, float* logits) {
    const float repeat = float(draw.repeat), presence = float(draw.presence), frequency = float(draw.frequency);
    std::copy(window, window + length, sorted);
    std::sort(sorted, sorted + length);
    for (int32_t at = 0; at < length;) {
        const int32_t id = sorted[at], first = at;
        while (at < length && sorted[at] == id) ++at;
        const float logit = logits[id], repeated = logit <= 0 ? logit * repeat : logit / repeat;
        logits[id] = repeated - (float(at - first) * frequency + presence);
    }
}

// exp((logit - largest) / temperature): 1 for the likeliest.
double weight(const Candidate* best, int32_t i, double temperature) {
    return std::exp((double(best[i].logit) - double(best[0].logit)) / temperature);
}

// How many of the `count` likeliest stay: those left of which less than p of the probability stands, at least one.
int32_t top_p(const Candidate* best, int32_t count, double p) {
    double total = 0, before = 0;
    for (int32_t i = 0; i < count; ++i) total += weight(best, i, 1.0);
    const double enough = std::max(p, std::numeric_limits<double>::denorm_min()) * total;
    for (int32_t i = 0; i < count; ++i) {
        if (!(before < enough)) return i;
        before += weight(best, i, 1.0);
    }
    return count;
}

int32_t min_p(const Candidate* best, int32_t count, double p) {
    int32_t kept = 0;
    while (kept < count && weight(best, kept, 1.0) >= p) ++kept;
    return kept;
}

int32_t choose(const bn_draw& draw, const Candidate* best, int32_t count) {
    if (draw.top_p < 1) count = top_p(best, count, draw.top_p);
    if (draw.min_p > 0) count = min_p(best, count, draw.min_p);
    double total = 0, sum = 0;
    for (int32_t i = 0; i < count; ++i) total += weight(best, i, draw.temperature);
    // random * total may round up to the total, which no sum exceeds.
    const double threshold = std::min(draw.random * total, std::nextafter(total, 0.0));
    for (int32_t i = 0; i < count; ++i) {
        sum += weight(best, i, draw.temperature);
        if (sum > threshold) return best[i].id;
    }
    return best[0].id;
}

}  // namespace

void head_draw(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table,
               const bn_draw* draws, const int64_t* windows, const int32_t* starts, int32_t rows, int64_t* ids) {
    const size_t vocab = size_t(table.rows), all_bytes = sizeof(float) * vocab * size_t(rows);
    int32_t most = 1, longest = 0;
    const auto candidates_of = [&](const bn_draw& draw) {
        return draw.temperature > 0 ? int32_t(std::clamp(draw.top_k, 1.0, double(table.rows))) : 1;
    };
    for (int32_t row = 0; row < rows; ++row) {
        most = std::max(most, candidates_of(draws[row]));
        longest = std::max(longest, starts[row + 1] - starts[row]);
    }
    // One reservation: every row's logits, then candidates and a window a worker. head() keeps its own scratch apart.
    const size_t own_bytes = sizeof(Candidate) * size_t(most) + sizeof(int32_t) * size_t((longest + 1) / 2 * 2);
    uint8_t* scratch = c.logit_scratch.reserve(all_bytes + own_bytes * size_t(c.pool.threads()));
    float* all = reinterpret_cast<float*>(scratch);
    head(c, x, gain, eps, table, rows, all);
    c.pool.run(rows, [&](int row, int worker) {
        const bn_draw& draw = draws[row];
        float* logits = all + size_t(row) * vocab;
        Candidate* best = reinterpret_cast<Candidate*>(scratch + all_bytes + own_bytes * size_t(worker));
        int32_t* sorted = reinterpret_cast<int32_t*>(best + most);
        penalise(draw, windows + starts[row], starts[row + 1] - starts[row], sorted, logits);
        const int32_t count = candidates_of(draw);
        rank_best(logits, table.rows, count, best);
        if (!std::isfinite(best[0].logit))
            ids[row] = -1;
        else
            ids[row] = draw.temperature > 0 ? choose(draw, best, count) : best[0].id;
    });
}

}  // namespace bitnet
