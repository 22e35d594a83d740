// The largest logits of a table in halves, without reading all of it.
//
// The upper halves of the codes, half of the bytes, give each row's sum but for the lower halves' part: a number of
// 0..15 for each k, times the activation. Rounding leaves those numbers as good as random, so their part is near 7.5
// times the activations' sum, and kDeviations standard deviations are not exceeded: a row is looked at again, with the
// lower halves, when its logit could then be among the k largest. What is found are the k largest logits of the whole
// table, bit for bit, unless one of those k rows deviates further: with 8 once in 10^15 times for each, and sums of
// numbers of 0..15 deviate less than normal ones do.
#pragma once

#include <algorithm>

#include "candidates.h"
#include "carver.h"
#include "context.h"

namespace bitnet {

// Pays for a few rows of many, and needs scales that are numbers.
bool can_screen(const bn_quantized& q, const bn_table& table, int32_t k);

class Screening {
  public:
    // For at most most_k of each of q's tokens.
    Screening(bn_context& c, const bn_quantized& q, const bn_table& table, int32_t most_k);
    void carve(Carver& carver) {
        const size_t tokens = size_t(q_.tokens), items = tokens * size_t(pieces_);
        sums_ = carver.take<int32_t>(tokens * stride_);
        codes_ = carver.take<int8_t>(tokens * size_t(chunks_) * size_t(kLowChunk));
        shift_ = carver.take<int32_t>(tokens);
        margin_ = carver.take<int32_t>(tokens);
        k_ = carver.take<int32_t>(tokens);
        bound_ = carver.take<float>(tokens);
        found_ = carver.take<Candidate>(items * size_t(most_k_));
        best_ = carver.take<Best>(items);
        seeds_ = carver.take<Candidate>(tokens * size_t(most_k_));
    }
    void run();  // the sums over the upper halves

    float logit(int32_t row, int32_t id) const;  // the head's, bit for bit; of an id that is not excluded
    void exclude(int32_t row, int32_t id) { sums_[size_t(row) * stride_ + size_t(id)] = kExcluded; }

    // The k_of(row) largest of each row's ids that are not excluded.
    template <class Count>
    void find(const Count& k_of) {
        for (int32_t row = 0; row < q_.tokens; ++row) k_[row] = k_of(row);
        c_.pool.run(pieces_, [&](int piece, int) { seed(piece); });
        c_.pool.run(q_.tokens, [&](int row, int) { set_bound(row); });
        c_.pool.run(pieces_, [&](int piece, int) { pick(piece); });
    }
    void offer_found(int32_t row, Best& best) const;

  private:
    static constexpr int32_t kExcluded = -(1 << 30);  // no sum: those stay below 128 * 127 * width
    static constexpr int32_t kRun = 2048;             // ids that all tokens look at in turn, while they are near

    template <class Take>
    void over_runs(int piece, const Take& take);
    int32_t ids_above(int32_t row, int32_t run, int32_t shift, float bound, int32_t* ids) const;
    void seed(int piece);
    void set_bound(int row);
    void pick(int piece);
    float rescaled(int32_t row, int32_t id, int32_t sum) const;
    Best& best_of(int32_t row, int piece) const { return best_[size_t(row) * size_t(pieces_) + size_t(piece)]; }

    bn_context& c_;
    const bn_quantized q_;
    const bn_table& table_;
    const int32_t most_k_, pieces_;  // pieces of the ids, one a thread
    const size_t stride_;            // of sums_
    const int32_t chunks_;           // of a row's lower halves
    int32_t* sums_ = nullptr;        // [T][stride]
    int8_t* codes_ = nullptr;        // [T][chunks * kLowChunk]
    int32_t *shift_ = nullptr, *margin_ = nullptr;  // [T]: what the lower halves add, and how far they may deviate
    int32_t* k_ = nullptr;           // [T]
    float* bound_ = nullptr;         // [T]: the least logit of the seeds
    Candidate* found_ = nullptr;     // [T][pieces][most_k]
    Best* best_ = nullptr;           // [T][pieces], of found
    Candidate* seeds_ = nullptr;     // [T][most_k]
};

}  // namespace bitnet
