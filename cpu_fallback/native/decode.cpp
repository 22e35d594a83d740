// Rounds of decoding: a step of one token a row, the head, the draw, and the tokens drawn are the next step's.
//
// What a caller would do in as many calls, with the same bits. Of a small model the calls cost more than the steps.
#include <algorithm>
#include <numeric>

#include "carver.h"
#include "context.h"

namespace bitnet {
namespace {

// The batch of a round, and what comes out of it.
struct Round {
    int64_t *token_ids, *positions, *slots, *logit_rows;
    int32_t *lengths, *starts;
    float* hidden;
};

Round carve(Carver& carver, size_t rows, size_t width) {
    Round round;
    round.token_ids = carver.take<int64_t>(rows);
    round.positions = carver.take<int64_t>(rows);
    round.slots = carver.take<int64_t>(rows);
    round.logit_rows = carver.take<int64_t>(rows);
    round.lengths = carver.take<int32_t>(rows);
    round.starts = carver.take<int32_t>(rows + 1);
    round.hidden = carver.take<float>(rows * width);
    return round;
}

}  // namespace

void decode(bn_context& c, const bn_plan& plan, const bn_decoding& rows, const bn_cache& cache, const bn_draws& draws,
            int64_t* ids) {
    const size_t count = size_t(rows.requests);
    if (count == 0) return;
    Carver measure(nullptr);
    carve(measure, count, size_t(plan.hidden_size));
    Carver carver(c.round_scratch.reserve(measure.used()));
    const Round at = carve(carver, count, size_t(plan.hidden_size));
    std::iota(at.logit_rows, at.logit_rows + count, 0);
    std::iota(at.starts, at.starts + count + 1, 0);
    const bn_batch batch{at.token_ids,  at.positions,  at.slots,      rows.block_tables, at.lengths,    at.starts,
                         at.logit_rows, rows.requests, rows.requests, rows.max_blocks,   rows.requests};
    for (int32_t round = 0; round < draws.rounds; ++round) {
        const int64_t* newest = round ? ids + size_t(round - 1) * count : rows.token_ids;
        for (size_t r = 0; r < count; ++r) {
            const int64_t position = int64_t(rows.lengths[r]) - 1 + round, block = position / cache.block_tokens;
            const int64_t block_id = rows.block_tables[r * size_t(rows.max_blocks) + size_t(block)];
            at.token_ids[r] = std::max<int64_t>(newest[r], 0);  // a row that drew none goes on with any
            at.positions[r] = position;
            at.slots[r] = block_id * cache.block_tokens + position % cache.block_tokens;
            at.lengths[r] = int32_t(position) + 1;
        }
        step(c, plan, batch, cache, at.hidden);
        head_draw(c, at.hidden, plan.head_gain, plan.eps, plan.head, draws, round, ids);
    }
}

const char* refuse_decoding(const bn_decoding& rows, const bn_cache& cache, const bn_plan& plan, int32_t rounds) {
    if (int64_t(cache.blocks) * cache.block_tokens > INT32_MAX) return "the cache has more than 2^31 slots";
    if (cache.layers < plan.num_layers) return "the layer is not in the cache";
    if (rounds < 1) return "there must be at least one round";
    for (int32_t r = 0; r < rows.requests; ++r) {
        const int64_t length = int64_t(rows.lengths[r]) + rounds - 1;
        const int64_t used = (length + cache.block_tokens - 1) / cache.block_tokens;
        if (rows.lengths[r] < 1 || used > rows.max_blocks) return "a length is beyond its block table";
        if (length > plan.rope.positions) return "a length is beyond the positions of the model";
        const int32_t* ids = rows.block_tables + size_t(r) * size_t(rows.max_blocks);
        for (int64_t i = 0; i < used; ++i)
            if (ids[i] < 0 || ids[i] >= cache.blocks) return "a block id is not in the cache";
    }
    return refuse_ids(rows.token_ids, rows.requests, plan.embedding.rows, 0, "token id");
}

}  // namespace bitnet
