// The k largest logits of a row, ties to the lower id. Knows no samplers.
#pragma once

#include <cstdint>

namespace bitnet {

struct Candidate {
    float logit;
    int32_t id;
};

// Fills best[k], k <= count, with the largest of logits[count], largest first. A NaN ranks above everything, so that a
// row that went wrong shows it.
void rank_best(const float* logits, int32_t count, int32_t k, Candidate* best);

}  // namespace bitnet
