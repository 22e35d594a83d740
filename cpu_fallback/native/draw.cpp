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
#include "screening.h"

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

// The biases of a row, then the penalties of its window, each distinct token once, on logits[id]; sorts the window.
template <class Logits>
void edit(const bn_draws& draws, int32_t row, int32_t* sorted, int32_t length, Logits& logits) {
    const bn_draw& draw = draws.rows[row];
    for (int32_t i = draws.bias_starts[row]; i < draws.bias_starts[row + 1]; ++i)
        logits[draws.bias_ids[i]] += draws.biases[i];
    const float repeat = float(draw.repeat), presence = float(draw.presence), frequency = float(draw.frequency);
    std::sort(sorted, sorted + length);
    for (int32_t at = 0; at < length;) {
        const int32_t id = sorted[at], first = at;
        while (at < length && sorted[at] == id) ++at;
        float& logit = logits[id];
        const float repeated = logit <= 0 ? logit * repeat : logit / repeat;
        logit = repeated - (float(at - first) * frequency + presence);
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

// Of a row's best[count]: the token, or why there is none.
int64_t token_of(const bn_draws& draws, int32_t row, double random, const Candidate* best, int32_t count) {
    if (!std::isfinite(best[0].logit)) {
        const bool is_biased = draws.bias_starts[row + 1] > draws.bias_starts[row];
        const bool is_banned = is_biased && best[0].logit == -std::numeric_limits<float>::infinity();
        return is_banned ? BN_ALL_BANNED : BN_NOT_FINITE;
    }
    return draws.rows[row].temperature > 0 ? choose(draws.rows[row], random, best, count) : best[0].id;
}

// A round of draws: which rows have a token to draw, and where it goes.
struct Round {
    const bn_draws& draws;
    const int32_t number;
    int64_t* const ids;

    bool has_ended(int32_t row) const { return number > 0 && ids[place(row) - size_t(draws.num_rows)] < 0; }
    void keep_ended(int32_t row) const { ids[place(row)] = ids[place(row) - size_t(draws.num_rows)]; }
    size_t place(int32_t row) const { return size_t(number) * size_t(draws.num_rows) + size_t(row); }
    int32_t window(int32_t row, int32_t* to) const { return window_of(draws, row, number, ids, to); }
    void draw(int32_t row, const Candidate* best, int32_t count) const {
        ids[place(row)] = token_of(draws, row, draws.randoms[place(row)], best, count);
    }
};

// The most that a row of a round needs.
struct Extents {
    int32_t candidates = 1, window = 0, biases = 0;

    Extents(const Round& round, const bn_table& table) {
        const bn_draws& draws = round.draws;
        for (int32_t row = 0; row < draws.num_rows; ++row) {
            candidates = std::max(candidates, candidates_of(draws.rows[row], table));
            window = std::max(window, draws.window_starts[row + 1] - draws.window_starts[row] + round.number);
            biases = std::max(biases, draws.bias_starts[row + 1] - draws.bias_starts[row]);
        }
    }
};

void draw_of_all(bn_context& c, const bn_quantized& q, const bn_table& table, const Round& round,
                 const Extents& most) {
    const int32_t rows = round.draws.num_rows;
    const size_t vocab = size_t(table.rows), all_bytes = sizeof(float) * vocab * size_t(rows);
    // One reservation: every row's logits, then candidates and a window a worker.
    const size_t window_bytes = sizeof(int32_t) * size_t((most.window + 1) / 2 * 2);
    const size_t own_bytes = sizeof(Candidate) * size_t(most.candidates) + window_bytes;
    uint8_t* scratch = c.logit_scratch.reserve(all_bytes + own_bytes * size_t(c.pool.threads()));
    float* all = reinterpret_cast<float*>(scratch);
    head_of(c, q, table, all);
    c.pool.run(rows, [&](int row, int worker) {
        if (round.has_ended(row)) return round.keep_ended(row);
        float* logits = all + size_t(row) * vocab;
        Candidate* best = reinterpret_cast<Candidate*>(scratch + all_bytes + own_bytes * size_t(worker));
        int32_t* window = reinterpret_cast<int32_t*>(best + most.candidates);
        edit(round.draws, row, window, round.window(row, window), logits);
        const int32_t count = candidates_of(round.draws.rows[row], table);
        rank_best(logits, table.rows, count, best);
        round.draw(row, best, count);
    });
}

// The logits of the few tokens of a row that biases and penalties change.
class Edited {
  public:
    // Sorts ids[count], which may repeat; logits[count] is room for as many.
    Edited(int32_t* ids, int32_t count, float* logits) : ids_(ids), logits_(logits) {
        std::sort(ids, ids + count);
        size_ = int32_t(std::unique(ids, ids + count) - ids);
    }
    int32_t size() const { return size_; }
    int32_t id(int32_t i) const { return ids_[i]; }
    float& operator[](int64_t id) { return logits_[std::lower_bound(ids_, ids_ + size_, id) - ids_]; }

  private:
    int32_t* const ids_;
    float* const logits_;
    int32_t size_;
};

void draw_of_screened(bn_context& c, const bn_quantized& q, const bn_table& table, const Round& round,
                      const Extents& most) {
    const bn_draws& draws = round.draws;
    const size_t rows = size_t(draws.num_rows);
    const size_t changed = size_t(most.window + most.biases);
    Screening screening(c, q, table, most.candidates);
    int32_t *windows, *edited_ids, *num_edited;
    float* edited_logits;
    Candidate* best;
    const auto carve = [&](Carver& carver) {
        screening.carve(carver);
        windows = carver.take<int32_t>(rows * size_t(most.window));
        edited_ids = carver.take<int32_t>(rows * changed);
        edited_logits = carver.take<float>(rows * changed);
        num_edited = carver.take<int32_t>(rows);
        best = carver.take<Candidate>(rows * size_t(most.candidates));
    };
    Carver measure(nullptr);
    carve(measure);
    Carver carver(c.logit_scratch.reserve(measure.used()));
    carve(carver);
    screening.run();
    c.pool.run(int(rows), [&](int row, int) {
        num_edited[row] = 0;
        if (round.has_ended(row)) return;
        int32_t *window = windows + size_t(row) * size_t(most.window), *ids = edited_ids + size_t(row) * changed;
        const int32_t length = round.window(row, window), first_bias = draws.bias_starts[row];
        int32_t count = 0;
        for (; count < length; ++count) ids[count] = window[count];
        for (int32_t i = first_bias; i < draws.bias_starts[row + 1]; ++i) ids[count++] = int32_t(draws.bias_ids[i]);
        Edited edited(ids, count, edited_logits + size_t(row) * changed);
        num_edited[row] = edited.size();
        for (int32_t i = 0; i < edited.size(); ++i) {
            edited[edited.id(i)] = screening.logit(row, edited.id(i));
            screening.exclude(row, edited.id(i));
        }
        edit(draws, row, window, length, edited);
    });
    screening.find([&](int32_t row) { return candidates_of(draws.rows[row], table); });
    c.pool.run(int(rows), [&](int row, int) {
        if (round.has_ended(row)) return round.keep_ended(row);
        const size_t first = size_t(row) * changed;
        Candidate* own = best + size_t(row) * size_t(most.candidates);
        Best all(own, candidates_of(draws.rows[row], table));
        for (size_t i = first; i < first + size_t(num_edited[row]); ++i) all.offer({edited_logits[i], edited_ids[i]});
        screening.offer_found(row, all);
        round.draw(row, own, all.sort());
    });
}

}  // namespace

void head_draw(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table,
               const bn_draws& draws, int32_t number, int64_t* ids) {
    if (draws.num_rows == 0) return;
    const Round round{draws, number, ids};
    const bn_quantized q = quantize_for_head(c, x, gain, eps, table.width, draws.num_rows);
    const Extents most(round, table);
    if (can_screen(q, table, most.candidates)) return draw_of_screened(c, q, table, round, most);
    draw_of_all(c, q, table, round, most);
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
