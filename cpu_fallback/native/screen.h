// A table in halves (abi.h): sums over the upper halves, a row's sum over the lower ones, and which rows can matter.
#pragma once

#include "linear.h"

namespace {

// sums: 16 * upper halves . activations - 128 * sum of the activations. With the lower halves' sum it is the codes'.
template <int Groups, int Tokens>
void screen_tile(const bn_quantized& q, const bn_table& table, int32_t* sums, size_t stride, int group, int token) {
    const int blocks = (table.width + 7) / 8;
    const size_t group_bytes = size_t(blocks) * kBlockBytes, x_stride = size_t((table.width + 15) / 16) * 16;
    const auto* from = reinterpret_cast<const uint8_t*>(table.blocks) + size_t(group) * group_bytes;
    alignas(64) Int upper[Tokens][Groups * kParts];
    batch_tile<4, Groups * kParts, Tokens>(from, group_bytes, q.codes + size_t(token) * x_stride, x_stride, blocks,
                                           upper);
    for (int t = 0; t < Tokens; ++t) {
        for (int g = 0; g < Groups; ++g) {
            I32x16 sum;
            __builtin_memcpy(&sum, &upper[t][g * kParts], sizeof sum);
            const int first_row = (group + g) * 16;
            store(sums + size_t(token + t) * stride + size_t(first_row),
                  (sum - fill(8 * q.sums[token + t])) * fill(16), least(16, table.rows - first_row));
        }
    }
}

void screen(const bn_quantized& q, const bn_table& table, int32_t* sums, size_t stride, int32_t first_group,
            int32_t last_group) {
    const auto tile = [&](auto groups, auto tokens, int group, int token) BN_LAMBDA {
        screen_tile<decltype(groups)::value, decltype(tokens)::value>(q, table, sums, stride, group, token);
    };
    const size_t group_bytes = size_t((table.width + 7) / 8) * kBlockBytes;
    cover_linear(first_group, last_group, group_bytes, q.tokens, tile);
}

// One row and one token, whose codes x come in the order of the halves: each chunk's that lie in lower bits, then those
// in upper bits, zeros beyond the width.
int32_t low_sum(const uint8_t* low, const int8_t* x, int32_t chunks) {
    I32x16 lower{}, upper{};
    for (int32_t chunk = 0; chunk < chunks; ++chunk, low += kBlockBytes, x += bitnet::kLowChunk) {
        unroll<kParts>([&](auto i) BN_LAMBDA {
            const Bytes packed = load_part<Bytes>(low + i * sizeof(Bytes));
            const Bytes first = load_part<Bytes>(x + i * sizeof(Bytes));
            const Bytes second = load_part<Bytes>(x + bitnet::kLowChunk / 2 + i * sizeof(Bytes));
            lower.part[i] = fold(lower.part[i], add(zero(), nibble<0>(packed), first));
            upper.part[i] = fold(upper.part[i], add(zero(), nibble<1>(packed), second));
        });
    }
    return total(lower + upper);
}

// The ids of `Registers` registers of 16 rows, appended to ids[count...]; returns the new count.
template <int Registers>
BN_INLINE int32_t pick_run(const int32_t* sums, const float* row_scale, int32_t first, int32_t last, int32_t shift,
                           float scale, float bound, int32_t* ids, int32_t count) {
    int32_t below[Registers * 16];
    I32x16 all = fill(-1);
    unroll<Registers>([&](auto i) BN_LAMBDA {
        const size_t at = size_t(first) + 16 * i;
        const F32x16 logit = to_float(load(sums + at) + fill(shift)) * (fill(scale) * load(row_scale + at));
        const I32x16 is_below = less(logit, fill(bound));
        all = each<Int>([](Int a, Int b) BN_LAMBDA { return a & b; }, all, is_below);
        store(below + 16 * i, is_below);
    });
    if (total(all) == -16) return count;
    for (int32_t i = 0; i < least(Registers * 16, last - first); ++i)
        if (!below[i]) ids[count++] = first + i;
    return count;
}

// The ids of first .. last - 1 whose float(sum + shift) * (scale * row_scale) is at least `bound`, ascending; returns
// how many. first is a multiple of 16; sums and row_scale can be read to a multiple of 16.
int32_t pick(const int32_t* sums, const float* row_scale, int32_t first, int32_t last, int32_t shift, float scale,
             float bound, int32_t* ids) {
    int32_t count = 0, at = first;
    for (; at + 64 <= last; at += 64) count = pick_run<4>(sums, row_scale, at, last, shift, scale, bound, ids, count);
    for (; at < last; at += 16) count = pick_run<1>(sums, row_scale, at, last, shift, scale, bound, ids, count);
    return count;
}

}  // namespace
