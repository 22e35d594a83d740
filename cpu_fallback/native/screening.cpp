#include "screening.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

namespace bitnet {
namespace {

constexpr double kDeviations = 8;
constexpr double kVariance = 21.25;  // of 0..15, each as likely
constexpr double kMean = 7.5;
constexpr int32_t kLine = 64;
constexpr int32_t kRowsAhead = 4;  // whose lower halves are asked for: they lie anywhere
constexpr int32_t kLeastShare = 64;  // of the rows: k may be one of so many

size_t whole(int32_t count, int32_t unit) { return size_t((count + unit - 1) / unit) * size_t(unit); }

}  // namespace

bool can_screen(const bn_quantized& q, const bn_table& table, int32_t k) {
    if (!table.low || k > table.rows / kLeastShare) return false;
    return std::all_of(q.scale, q.scale + q.tokens, [](float scale) { return std::isfinite(scale); });
}

Screening::Screening(bn_context& c, const bn_quantized& q, const bn_table& table, int32_t most_k)
    : c_(c), q_(q), table_(table), most_k_(most_k), pieces_(c.pool.threads()),
      stride_(whole(table.rows, 16)), chunks_((table.width + kLowChunk - 1) / kLowChunk) {}

void Screening::run() {
    order_codes(q_, size_t(chunks_) * kLowChunk, codes_);
    for (int32_t row = 0; row < q_.tokens; ++row) {
        const int8_t* codes = q_.codes + size_t(row) * code_stride(q_.width);
        int64_t squares = 0, magnitudes = 0;
        for (int32_t k = 0; k < q_.width; ++k) squares += codes[k] * codes[k], magnitudes += std::abs(codes[k]);
        const double likely = kDeviations * std::sqrt(kVariance * double(squares)), most = kMean * double(magnitudes);
        shift_[row] = int32_t(std::floor(kMean * q_.sums[row]));
        margin_[row] = int32_t(std::ceil(std::min(likely, most))) + 1;
    }
    screen_sums(c_, q_, table_, sums_, stride_);
}

float Screening::rescaled(int32_t row, int32_t id, int32_t sum) const {
    return float(sum) * (q_.scale[row] * table_.row_scale[id]);
}

float Screening::logit(int32_t row, int32_t id) const {
    const uint8_t* low = table_.low + size_t(id) * low_stride(table_.width);
    const int8_t* codes = codes_ + size_t(row) * size_t(chunks_) * kLowChunk;
    const int32_t sum = sums_[size_t(row) * stride_ + size_t(id)] + c_.kernels->low_sum(low, codes, chunks_);
    return rescaled(row, id, sum);
}

// take(run, row) for a piece's runs and every row, whose best of the piece begin anew.
template <class Take>
void Screening::over_runs(int piece, const Take& take) {
    for (int32_t row = 0; row < q_.tokens; ++row) {
        const size_t item = size_t(row) * size_t(pieces_) + size_t(piece);
        new (best_ + item) Best(found_ + item * size_t(most_k_), k_[row]);
    }
    const int32_t runs = int32_t(whole(table_.rows, kRun)) / kRun;
    for (int32_t run = runs * piece / pieces_; run < runs * (piece + 1) / pieces_; ++run)
        for (int32_t row = 0; row < q_.tokens; ++row) take(run, row);
}

// A run's ids whose sum, so much larger, reaches the bound.
int32_t Screening::ids_above(int32_t row, int32_t run, int32_t shift, float bound, int32_t* ids) const {
    const int32_t *sums = sums_ + size_t(row) * stride_, first = run * kRun, last = std::min(table_.rows, first + kRun);
    const int32_t count = c_.kernels->pick(sums, table_.row_scale, first, last, shift, q_.scale[row], bound, ids);
    return int32_t(std::remove_if(ids, ids + count, [&](int32_t id) { return sums[id] == kExcluded; }) - ids);
}

void Screening::seed(int piece) {
    over_runs(piece, [&](int32_t run, int32_t row) {
        Best& best = best_of(row, piece);
        const int32_t* sums = sums_ + size_t(row) * stride_;
        int32_t ids[kRun];
        const int32_t count = ids_above(row, run, shift_[row], best.bound(), ids);
        for (int32_t i = 0; i < count; ++i) best.offer({rescaled(row, ids[i], sums[ids[i]] + shift_[row]), ids[i]});
    });
}

// Of the rows that seem the largest, whatever piece they are in, the least logit: the k-th largest of all is not below.
void Screening::set_bound(int row) {
    Candidate* seeds = seeds_ + size_t(row) * size_t(most_k_);
    Best best(seeds, k_[row]);
    offer_found(row, best);
    const int32_t count = best.sort();
    float bound = std::numeric_limits<float>::infinity();
    for (int32_t i = 0; i < count; ++i) bound = std::min(bound, logit(row, seeds[i].id));
    bound_[row] = count < k_[row] ? -std::numeric_limits<float>::infinity() : bound;
}

void Screening::pick(int piece) {
    const size_t row_bytes = low_stride(table_.width);
    const auto fetch = [&](int32_t id) {
        const uint8_t* low = table_.low + size_t(id) * row_bytes;
        for (size_t at = 0; at < row_bytes; at += kLine) __builtin_prefetch(low + at, 0, 2);
    };
    over_runs(piece, [&](int32_t run, int32_t row) {
        int32_t ids[kRun];
        const int32_t count = ids_above(row, run, shift_[row] + margin_[row], bound_[row], ids);
        for (int32_t i = 0; i < std::min(kRowsAhead, count); ++i) fetch(ids[i]);
        for (int32_t i = 0; i < count; ++i) {
            if (i + kRowsAhead < count) fetch(ids[i + kRowsAhead]);
            best_of(row, piece).offer({logit(row, ids[i]), ids[i]});
        }
    });
}

void Screening::offer_found(int32_t row, Best& best) const {
    for (int32_t piece = 0; piece < pieces_; ++piece)
        for (const Candidate& candidate : best_of(row, piece)) best.offer(candidate);
}

}  // namespace bitnet
