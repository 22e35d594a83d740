// The plain chain of samplers, for all rows at once: biases, penalties, top_k, top_p, min_p, temperature, one draw.
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

// The last_n tokens of a row whose window has grown by those that the rounds before `round` drew; returns how many.
int32_t window_of(const bn_draws& draws, int32_t row, int32_t round, const int64_t* ids, int32_t* window) {
    const int64_t* known = draws.windows + draws.window_starts[row];
    const int32_t num_known = draws.window_starts[row + 1] - draws.window_starts[row], total = num_known + round;
    int32_t length = 0;
    for (int32_t i = std::max(0, total - int32_t(draws.rows[row].last_n)); i < total; ++i) {
        const size_t drawn = size_t(i - num_known) * size_t(draws.num_rows) + size_t(row);
        window[length++] = int32_t(i < num_known ? known[i] : ids[drawn]);
    }
    return length;
}

// Penalises each distinct token of the window once; sorts it.
void penalise(const bn_draw& draw, int32_t* sorted, int32_t length, float* logits) {
    const float repeat = float(draw.repeat), presence = float(draw.presence), frequency = float(draw.frequency);
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

int32_t choose(const bn_draw& draw, double random, const Candidate* best, int32_t count) {
    if (draw.top_p < 1) count = top_p(best, count, draw.top_p);
    if (draw.min_p > 0) count = min_p(best, count, draw.min_p);
    double total = 0, sum = 0;
    for (int32_t i = 0; i < count; ++i) total += weight(best, i, draw.temperature);
    // random * total may round up to the total, which no sum exceeds.
    const double threshold = std::min(random * total, std::nextafter(total, 0.0));
    for (int32_t i = 0; i < count; ++i) {
        sum += weight(best, i, draw.temperature);
        if (sum > threshold) return best[i].id;
    }
    return best[0].id;
}

// The candidates that a row's token is chosen from.
int32_t candidates_of(const bn_draw& draw, const bn_table& table) {
    return draw.temperature > 0 ? int32_t(std::clamp(draw.top_k, 1.0, double(table.rows))) : 1;
}

}  // namespace

void head_draw(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table,
               const bn_draws& draws, int32_t round, int64_t* ids) {
    const int32_t rows = draws.num_rows;
    const size_t vocab = size_t(table.rows), all_bytes = sizeof(float) * vocab * size_t(rows);
    int32_t most = 1, longest = 0;
    for (int32_t row = 0; row < rows; ++row) {
        most = std::max(most, candidates_of(draws.rows[row], table));
        longest = std::max(longest, draws.window_starts[row + 1] - draws.window_starts[row] + round);
    }
    // One reservation: every row's logits, then candidates and a window a worker. head() keeps its own scratch apart.
    const size_t own_bytes = sizeof(Candidate) * size_t(most) + sizeof(int32_t) * size_t((longest + 1) / 2 * 2);
    uint8_t* scratch = c.logit_scratch.reserve(all_bytes + own_bytes * size_t(c.pool.threads()));
    float* all = reinterpret_cast<float*>(scratch);
    head(c, x, gain, eps, table, rows, all);
    c.pool.run(rows, [&](int row, int worker) {
        const size_t place = size_t(round) * size_t(rows) + size_t(row);
        if (round > 0 && ids[place - size_t(rows)] < 0) {
            ids[place] = ids[place - size_t(rows)];
            return;
        }
        const bn_draw& draw = draws.rows[row];
        float* logits = all + size_t(row) * vocab;
        Candidate* best = reinterpret_cast<Candidate*>(scratch + all_bytes + own_bytes * size_t(worker));
        int32_t* window = reinterpret_cast<int32_t*>(best + most);
        const int32_t first_bias = draws.bias_starts[row], last_bias = draws.bias_starts[row + 1];
        for (int32_t i = first_bias; i < last_bias; ++i) logits[draws.bias_ids[i]] += draws.biases[i];
        penalise(draw, window, window_of(draws, row, round, ids, window), logits);
        const int32_t count = candidates_of(draw, table);
        rank_best(logits, table.rows, count, best);
        const bool is_banned = last_bias > first_bias && best[0].logit == -std::numeric_limits<float>::infinity();
        if (!std::isfinite(best[0].logit))
            ids[place] = is_banned ? BN_ALL_BANNED : BN_NOT_FINITE;
        else
            ids[place] = draw.temperature > 0 ? choose(draw, draws.randoms[place], best, count) : best[0].id;
    });
}

const char* refuse_draws(const bn_draws& draws, const bn_table& table) {
    const auto cuts = [&](const int32_t* starts) {
        return starts[0] == 0 && std::is_sorted(starts, starts + draws.num_rows + 1);
    };
    if (!cuts(draws.window_starts)) return "the starts do not cut the windows into rows";
    if (!cuts(draws.bias_starts)) return "the starts do not cut the biases into rows";
    const int32_t num_biases = draws.bias_starts[draws.num_rows];
    if (const char* refusal = refuse_ids(draws.bias_ids, num_biases, table.rows, 0, "biased token")) return refusal;
    return refuse_ids(draws.windows, draws.window_starts[draws.num_rows], table.rows, 0, "window token");
}

}  // namespace bitnet
