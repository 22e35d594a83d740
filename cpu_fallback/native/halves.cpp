// All logits of a table in halves (abi.h): those of a whole one, at up to three times the price.
#include <algorithm>
#include <cstring>

#include "context.h"

namespace bitnet {

void order_codes(const bn_quantized& q, size_t ordered, int8_t* to) {
    std::memset(to, 0, size_t(q.tokens) * ordered);
    for (int32_t row = 0; row < q.tokens; ++row, to += ordered) {
        const int8_t* from = q.codes + size_t(row) * code_stride(q.width);
        for (int32_t k = 0; k < q.width; k += 4) {
            const int32_t chunk = k / kLowChunk * kLowChunk, half = k % 8 / 4 * (kLowChunk / 2);
            std::memcpy(to + chunk + half + k % kLowChunk / 8 * 4, from + k, 4);
        }
    }
}

namespace {

// Both halves' sums of each row: half of the work of joining them for few tokens.
void head_by_sums(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits) {
    constexpr int32_t kRows = 256;
    const int32_t chunks = (table.width + kLowChunk - 1) / kLowChunk;
    const size_t ordered = size_t(chunks) * kLowChunk, vocab = size_t(table.rows);
    int8_t* codes = reinterpret_cast<int8_t*>(c.worker_scratch.reserve(size_t(q.tokens) * ordered));
    order_codes(q, ordered, codes);
    screen_sums(c, q, table, reinterpret_cast<int32_t*>(logits), vocab);  // each sum where its logit goes
    c.pool.run((table.rows + kRows - 1) / kRows, [&](int item, int) {
        for (int32_t id = item * kRows; id < std::min(table.rows, (item + 1) * kRows); ++id) {
            const uint8_t* low = table.low + size_t(id) * low_stride(table.width);
            for (size_t row = 0; row < size_t(q.tokens); ++row) {
                float* logit = logits + row * vocab + size_t(id);
                int32_t sum;
                std::memcpy(&sum, logit, sizeof sum);
                sum += c.kernels->low_sum(low, codes + row * ordered, chunks);
                *logit = float(sum) * (q.scale[row] * table.row_scale[id]);
            }
        }
    });
}

void head_by_joining(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits) {
    constexpr int32_t kGroups = 6;  // that are joined and then meet all tokens
    const size_t group_bytes = size_t((table.width + 3) / 4) * 64, part_bytes = kGroups * group_bytes + 64;
    uint8_t* scratch = c.worker_scratch.reserve(part_bytes * size_t(c.pool.threads()));
    const int32_t groups = (table.rows + 15) / 16;
    c.pool.run((groups + kGroups - 1) / kGroups, [&](int item, int worker) {
        int8_t* part = reinterpret_cast<int8_t*>(scratch + part_bytes * size_t(worker));
        const int32_t first = item * kGroups, last = std::min(groups, first + kGroups);
        for (int32_t group = first; group < last; ++group)
            c.kernels->join(table, group, part + size_t(group - first) * group_bytes);
        c.kernels->head(q, table, part, logits, first, last);
    });
}

}  // namespace

void head_of_halves(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits) {
    constexpr int32_t kFewTokens = 4;
    (q.tokens <= kFewTokens ? head_by_sums : head_by_joining)(c, q, table, logits);
}

}  // namespace bitnet
