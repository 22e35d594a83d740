// The ternary linear and the int8 head: tiles of rows x tokens held in registers, no horizontal sums.
//
// A register holds kLanes rows; four activations of a token are broadcast as one 32-bit word, so a dot instruction adds
// four products to each row's lane. The instruction set's source defines, before it includes this file:
//   Partial, zero(), add(Partial, codes, x), fold(Int, Partial)   a running sum of u8 codes x s8 activations
//   kSpan, kRowSpan      blocks of 16 k a Partial may take with codes up to 2, and up to 8 (see row_tile)
//   kHalvesSpan          blocks of 8 k a Partial may take with codes up to 15 (see screen.h)
//   head_add(Int, Bytes w, Bytes x), head_x(Bytes), kHeadOffset  a running sum of s8 x s8, kHeadOffset * sum(w) too big
//   kLinearGroups, kLinearTokens, kRowGroups, kHeadGroups, kHeadTokens   tile extents that fit the registers
//   kPrefetchBytes       how far ahead of each stream of weights to ask for
// The block layout and the in-place masks: a prototype on AVX-512 VNNI measured 92 to 95 % of the arithmetic peak.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

constexpr size_t kCacheBytes = 256 << 10;  // of weights that are used again: half of the smallest second cache in use
constexpr int kBlockBytes = 64;  // 16 rows x 16 k of ternary weights, or 16 rows x 4 k of the head

BN_INLINE int least(int a, int b) { return a < b ? a : b; }

BN_INLINE Bytes broadcast_word(const int8_t* from) {
    int32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    return bits<Bytes>(word - Int{});
}

// Asks for the block kPrefetchBytes ahead of `block`, the b-th of its stream's `blocks`: at the end of the stream, for
// one of the stream that follows in the next tile. Into the second cache, whose queue of misses is the longer one: on a
// Zen 4 core (2026-11-25) one token's weights came at 18 GB/s by way of the first cache, at 30 by way of the second.
BN_INLINE void prefetch(const void* block, int b, int blocks, int streams, size_t stream_bytes) {
    const bool within = b + kPrefetchBytes / kBlockBytes < blocks;
    const size_t ahead = within ? size_t(kPrefetchBytes) : size_t(kPrefetchBytes) + size_t(streams - 1) * stream_bytes;
    __builtin_prefetch(static_cast<const uint8_t*>(block) + ahead, 0, 2);
}

template <int Pair>
BN_INLINE Bytes bit_pair(Bytes packed) {  // codes 0..2 of one bit pair of each byte
    return bits<Bytes>((bits<Half>(packed) >> (2 * Pair)) & 0x0303);
}
template <int Field>
BN_INLINE Bytes nibble(Bytes packed) {  // 0..15: the lower or the upper half of each byte
    return bits<Bytes>((bits<Half>(packed) >> (4 * Field)) & 0x0f0f);
}

// Codes of 2 or 4 bits: how many lie in a byte, one after the other in k, and how many blocks a Partial takes of them.
template <int Bits>
struct Field;
template <>
struct Field<2> {
    static constexpr int kCount = 4, kBlocks = kSpan;
    template <int I>
    static BN_INLINE Bytes take(Bytes packed) { return bit_pair<I>(packed); }
};
template <>
struct Field<4> {
    static constexpr int kCount = 2, kBlocks = kHalvesSpan;
    template <int I>
    static BN_INLINE Bytes take(Bytes packed) { return nibble<I>(packed); }
};

// sums[t][v] = codes of register v . activations of token t, over all k.
template <int Bits, int Vectors, int Tokens>
void batch_tile(const uint8_t* w, size_t group_bytes, const int8_t* x, size_t x_stride, int blocks,
                Int (&sums)[Tokens][Vectors]) {
    unroll<Tokens>([&](auto t) BN_LAMBDA { unroll<Vectors>([&](auto v) BN_LAMBDA { sums[t][v] = Int{}; }); });
    for (int first = 0; first < blocks; first += Field<Bits>::kBlocks) {
        const int last = blocks - first < Field<Bits>::kBlocks ? blocks : first + Field<Bits>::kBlocks;
        Partial partial[Tokens][Vectors];
        unroll<Tokens>([&](auto t) BN_LAMBDA { unroll<Vectors>([&](auto v) BN_LAMBDA { partial[t][v] = zero(); }); });
        for (int b = first; b < last; ++b) {
            Bytes packed[Vectors];
            unroll<Vectors>([&](auto v) BN_LAMBDA {
                const uint8_t* from = w + size_t(v / kParts) * group_bytes + size_t(b) * kBlockBytes;
                packed[v] = load_part<Bytes>(from + (v % kParts) * sizeof(Bytes));
                if (v % kParts == 0) prefetch(from, b, blocks, Vectors / kParts, group_bytes);
            });
            unroll<Field<Bits>::kCount>([&](auto field) BN_LAMBDA {
                Bytes codes[Vectors];
                unroll<Vectors>([&](auto v) BN_LAMBDA {
                    codes[v] = Field<Bits>::template take<decltype(field)::value>(packed[v]);
                });
                unroll<Tokens>([&](auto t) BN_LAMBDA {
                    const size_t k = (size_t(b) * Field<Bits>::kCount + size_t(field)) * 4;
                    const Bytes word = broadcast_word(x + size_t(t) * x_stride + k);
                    unroll<Vectors>([&](auto v) BN_LAMBDA { partial[t][v] = add(partial[t][v], codes[v], word); });
                });
            });
        }
        unroll<Tokens>([&](auto t) BN_LAMBDA {
            unroll<Vectors>([&](auto v) BN_LAMBDA { sums[t][v] = fold(sums[t][v], partial[t][v]); });
        });
    }
}

// One token. Odd bit pairs are masked in place, four times too large, and shifted back once at the end: one shift and
// four masks for 4 * kLanes weights. Exact: 4 * 2 * 127 * K stays below 2^31 for every K below two million.
template <int Vectors>
void row_tile(const uint8_t* w, size_t group_bytes, const int8_t* x, int blocks, Int (&sums)[1][Vectors]) {
    unroll<Vectors>([&](auto v) BN_LAMBDA { sums[0][v] = Int{}; });
    for (int first = 0; first < blocks; first += kRowSpan) {
        const int last = blocks - first < kRowSpan ? blocks : first + kRowSpan;
        Partial even[Vectors], odd[Vectors];
        unroll<Vectors>([&](auto v) BN_LAMBDA { even[v] = zero(), odd[v] = zero(); });
        for (int b = first; b < last; ++b) {
            Bytes word[4];
            unroll<4>([&](auto pair) BN_LAMBDA { word[pair] = broadcast_word(x + size_t(b) * 16 + 4 * pair); });
            unroll<Vectors>([&](auto v) BN_LAMBDA {
                const uint8_t* from = w + size_t(v / kParts) * group_bytes + size_t(b) * kBlockBytes;
                const Bytes low = load_part<Bytes>(from + (v % kParts) * sizeof(Bytes));
                const Bytes high = bits<Bytes>(bits<Half>(low) >> 4);
                if (v % kParts == 0) prefetch(from, b, blocks, Vectors / kParts, group_bytes);
                even[v] = add(even[v], low & 0x03, word[0]);
                odd[v] = add(odd[v], low & 0x0c, word[1]);
                even[v] = add(even[v], high & 0x03, word[2]);
                odd[v] = add(odd[v], high & 0x0c, word[3]);
            });
        }
        unroll<Vectors>([&](auto v) BN_LAMBDA {
            sums[0][v] = fold(sums[0][v] + 4 * fold(Int{}, even[v]), odd[v]);
        });
    }
    unroll<Vectors>([&](auto v) BN_LAMBDA { sums[0][v] = sums[0][v] >> 2; });
}

// float(sum) * (scale * row_scale) + residual for one token and 16 rows.
BN_INLINE void rescale(const I32x16& sum, float scale, const float* row_scale, const float* residual, float* out,
                       int count) {
    F32x16 value = to_float(sum) * (fill(scale) * load(row_scale));
    if (residual) value = load(residual, count) + value;
    store(out, value, count);
}

template <int Groups, int Tokens>
void linear_tile(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int group, int token) {
    const int blocks = (w.width + 15) / 16;
    const size_t group_bytes = size_t(blocks) * kBlockBytes, x_stride = size_t(blocks) * 16;
    const uint8_t* from = w.blocks + size_t(group) * group_bytes;
    const int8_t* x = q.codes + size_t(token) * x_stride;
    alignas(64) Int sums[Tokens][Groups * kParts];
    if constexpr (Tokens == 1)
        row_tile<Groups * kParts>(from, group_bytes, x, blocks, sums);
    else
        batch_tile<2, Groups * kParts, Tokens>(from, group_bytes, x, x_stride, blocks, sums);
    for (int t = 0; t < Tokens; ++t) {
        for (int g = 0; g < Groups; ++g) {
            I32x16 sum;
            __builtin_memcpy(&sum, &sums[t][g * kParts], sizeof sum);
            const int first_row = (group + g) * 16, count = least(16, w.rows - first_row);
            const size_t at = size_t(token + t) * size_t(w.rows) + size_t(first_row);
            rescale(sum - fill(q.sums[token + t]), q.scale[token + t], w.row_scale + first_row,
                    residual ? residual + at : nullptr, out + at, count);
        }
    }
}

template <int Vectors, int Tokens>
void head_sums(const int8_t* w, size_t group_bytes, const int8_t* x, size_t x_stride, int blocks,
               Int (&sums)[Tokens][Vectors]) {
    Int running[Tokens][Vectors];
    unroll<Tokens>([&](auto t) BN_LAMBDA { unroll<Vectors>([&](auto v) BN_LAMBDA { running[t][v] = Int{}; }); });
    for (int b = 0; b < blocks; ++b) {
        Bytes weights[Vectors];
        unroll<Vectors>([&](auto v) BN_LAMBDA {
            const int8_t* from = w + size_t(v / kParts) * group_bytes + size_t(b) * kBlockBytes;
            weights[v] = load_part<Bytes>(from + (v % kParts) * sizeof(Bytes));
            if (v % kParts == 0) prefetch(from, b, blocks, Vectors / kParts, group_bytes);
        });
        unroll<Tokens>([&](auto t) BN_LAMBDA {
            const Bytes word = head_x(broadcast_word(x + size_t(t) * x_stride + size_t(b) * 4));
            unroll<Vectors>([&](auto v) BN_LAMBDA { running[t][v] = head_add(running[t][v], weights[v], word); });
        });
    }
    __builtin_memcpy(&sums, &running, sizeof sums);
}

template <int Groups, int Tokens>
void head_tile(const bn_quantized& q, const bn_table& table, const int8_t* from, float* logits, int group, int token) {
    const int blocks = (table.width + 3) / 4;
    const size_t group_bytes = size_t(blocks) * kBlockBytes, x_stride = size_t((table.width + 15) / 16) * 16;
    alignas(64) Int sums[Tokens][Groups * kParts];
    head_sums<Groups * kParts, Tokens>(from, group_bytes, q.codes + size_t(token) * x_stride, x_stride, blocks, sums);
    for (int t = 0; t < Tokens; ++t) {
        for (int g = 0; g < Groups; ++g) {
            I32x16 sum;
            __builtin_memcpy(&sum, &sums[t][g * kParts], sizeof sum);
            const int first_row = (group + g) * 16, count = least(16, table.rows - first_row);
            rescale(sum - load(table.row_sums + first_row) * fill(kHeadOffset), q.scale[token + t],
                    table.row_scale + first_row, nullptr,
                    logits + size_t(token + t) * size_t(table.rows) + size_t(first_row), count);
        }
    }
}

// Covers groups x tokens with tiles of compile-time extents, `tile(Index<Groups>, Index<Tokens>, group, token)`: the
// largest tiles first, tokens cut evenly (7 as 4 + 3, not 6 + 1). A block of groups small enough for the second cache
// meets a tile of tokens, which stays in the first, before the next tile comes.
template <int Groups, int Tokens, class Tile>
BN_INLINE void cover_groups(int first_group, int last_group, int token, const Tile& tile) {
    if constexpr (Groups > 0) {
        for (; first_group + Groups <= last_group; first_group += Groups)
            tile(Index<Groups>{}, Index<Tokens>{}, first_group, token);
        cover_groups<Groups / 2, Tokens>(first_group, last_group, token, tile);
    }
}
template <int Groups, int Tokens, class Tile>
BN_INLINE void cover_tile(int first_group, int last_group, int token, int tokens, const Tile& tile) {
    if constexpr (Tokens > 0) {
        if (tokens == Tokens) return cover_groups<Groups, Tokens>(first_group, last_group, token, tile);
        cover_tile<Groups, Tokens - 1>(first_group, last_group, token, tokens, tile);
    }
}
template <int Groups, int MaxTokens, class Tile>
BN_INLINE void cover(int first_group, int last_group, size_t group_bytes, int tokens, const Tile& tile) {
    const int fit = int(kCacheBytes / (group_bytes * Groups)), block = Groups * (fit ? fit : 1);
    for (; first_group < last_group; first_group += block) {
        const int end = least(first_group + block, last_group);
        int tiles = (tokens + MaxTokens - 1) / MaxTokens;
        for (int token = 0; tiles > 0; --tiles) {
            const int count = (tokens - token + tiles - 1) / tiles;
            cover_tile<Groups, MaxTokens>(first_group, end, token, count, tile);
            token += count;
        }
    }
}

// With the tiles of one token, or of more.
template <class Tile>
BN_INLINE void cover_linear(int first_group, int last_group, size_t group_bytes, int tokens, const Tile& tile) {
    if (tokens == 1)
        cover<kRowGroups, 1>(first_group, last_group, group_bytes, 1, tile);
    else
        cover<kLinearGroups, kLinearTokens>(first_group, last_group, group_bytes, tokens, tile);
}

void linear(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int32_t first_group,
            int32_t last_group) {
    const auto tile = [&](auto groups, auto tokens, int group, int token) BN_LAMBDA {
        linear_tile<decltype(groups)::value, decltype(tokens)::value>(q, w, residual, out, group, token);
    };
    const size_t group_bytes = size_t((w.width + 15) / 16) * kBlockBytes;
    cover_linear(first_group, last_group, group_bytes, q.tokens, tile);
}

void head(const bn_quantized& q, const bn_table& table, const int8_t* blocks, float* logits, int32_t first_group,
          int32_t last_group) {
    const size_t group_bytes = size_t((table.width + 3) / 4) * kBlockBytes;
    cover<kHeadGroups, kHeadTokens>(first_group, last_group, group_bytes, q.tokens,
                                    [&](auto groups, auto tokens, int group, int token) BN_LAMBDA {
                                        head_tile<decltype(groups)::value, decltype(tokens)::value>(
                                            q, table, blocks + size_t(group - first_group) * group_bytes, logits,
                                            group, token);
                                    });
}

}  // namespace
