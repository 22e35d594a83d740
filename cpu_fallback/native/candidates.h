// The k largest logits of a row, ties to the lower id. Knows no samplers.
#pragma once

#include <cstdint>

namespace bitnet {

struct Candidate {
    float logit;
    int32_t id;
};

// The k largest of the candidates offered so far, in heap[k]. A NaN ranks above everything, so that a row that went
// wrong shows it.
class Best {
  public:
    Best(Candidate* heap, int32_t k) : heap_(heap), k_(k) {}

    void offer(const Candidate& candidate);
    // What a candidate must not be below to be taken; minus infinity until there are k.
    float bound() const;
    int32_t sort();  // largest first; returns how many there are
    const Candidate* begin() const { return heap_; }
    const Candidate* end() const { return heap_ + size_; }

  private:
    Candidate* heap_;  // its front is the least of them once there are k
    int32_t k_;
    int32_t size_ = 0;
};

// Fills best[k], k <= count, with the largest of logits[count], largest first.
void rank_best(const float* logits, int32_t count, int32_t k, Candidate* best);

}  // namespace bitnet
