// Paged grouped-query attention: online softmax over KV tiles of one block, aligned to absolute position, in order.
//
// The operations for one (query, head) depend on its position and its keys only: scores sum over d in order, the
// softmax state is updated once a tile, values are added token by token and only as far as the query may see, so what
// lies in unseen slots (another request's NaN) is never multiplied. Online softmax: Milakov and Gimelshein, 2018.
#pragma once

#include "pages.h"

namespace {

struct Bf16 {
    using Element = uint16_t;
    static BN_INLINE F32x16 load(const Element* from) {
        F32x16 out;
        unroll<kParts>([&](auto i) BN_LAMBDA {
            out.part[i] = bits<Float>(widen_halves(from + i * kLanes) << 16);
        });
        return out;
    }
};
struct Int8 {
    using Element = int8_t;
    static BN_INLINE F32x16 load(const Element* from) {
        F32x16 out;
        unroll<kParts>([&](auto i) BN_LAMBDA {
            out.part[i] = __builtin_convertvector(widen_bytes(from + i * kLanes), Float);
        });
        return out;
    }
};

// The running state of the rows of a part; a row is one (query, head).
struct AttentionState {
    const float** q;      // [rows] -> [D]
    float* weights;       // [rows][token_lanes]: scores, then probabilities of the current tile
    float* out;           // [rows][value_lanes], not yet divided by `mass`
    float* top;           // [rows] largest score so far
    float* mass;          // [rows] sum of probabilities so far
    float* shrink;        // [rows] what the earlier tiles are multiplied with
    int32_t* visible;     // [rows] tokens of the current tile the row may see, never fewer than the row before
    const uint8_t* next;  // the page after this one, asked for while this one's values are added
    int32_t seen;         // tokens of the current tile that any row may see, as a multiple of 16
};

// A tile of the two products: kTileRows rows x kTileVectors vectors of 16, as many sums as the registers hold beside
// their operands. On a Zen 4 core (2026-11-25) 8 x 2 took 0.6 of the time of 4 x 1 for a prompt.
constexpr int kTileRows = kLanes == 16 ? 8 : 4, kTileVectors = kLanes == 16 ? 2 : 1;

// Scores of `Rows` rows against 16 * Vectors tokens of the page, from `token` on.
template <class Store, int Rows, int Vectors>
BN_INLINE void score_tile(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page, size_t token) {
    const size_t lanes = size_t(cache.token_lanes);
    const auto* keys = reinterpret_cast<const typename Store::Element*>(page) + token;
    const auto* values = reinterpret_cast<const typename Store::Element*>(page + cache.values_offset);
    F32x16 sum[Rows][Vectors];
    unroll<Rows>([&](auto r) BN_LAMBDA { unroll<Vectors>([&](auto v) BN_LAMBDA { sum[r][v] = fill(0.0f); }); });
    for (int d = 0; d < cache.head_dim; ++d) {
        F32x16 key[Vectors];
        __builtin_prefetch(values + size_t(d) * lanes, 0, 2);
        unroll<Vectors>([&](auto v) BN_LAMBDA { key[v] = Store::load(keys + size_t(d) * lanes + 16 * v); });
        unroll<Rows>([&](auto r) BN_LAMBDA {
            const F32x16 q = fill(s.q[row + r][d]);
            unroll<Vectors>([&](auto v) BN_LAMBDA { sum[r][v] = fused(q, key[v], sum[r][v]); });
        });
    }
    unroll<Rows>([&](auto r) BN_LAMBDA {
        unroll<Vectors>([&](auto v) BN_LAMBDA {
            store(s.weights + size_t(row + r) * lanes + token + 16 * v, sum[r][v]);
        });
    });
}

template <class Store, int Rows>
BN_INLINE void score_rows(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page) {
    size_t token = 0;
    for (; token + 16 * kTileVectors <= size_t(s.seen); token += 16 * kTileVectors)
        score_tile<Store, Rows, kTileVectors>(s, row, cache, page, token);
    for (; token < size_t(s.seen); token += 16) score_tile<Store, Rows, 1>(s, row, cache, page, token);
}

// Adds the values that `Rows` rows see, all equally many, to 16 * Vectors elements of their outputs, from `d` on.
template <class Store, int Rows, int Vectors>
BN_INLINE void value_tile(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page, size_t d) {
    const size_t lanes = size_t(cache.token_lanes), width = size_t(cache.value_lanes);
    const auto* values = reinterpret_cast<const typename Store::Element*>(page + cache.values_offset) + d;
    const auto* next = reinterpret_cast<const typename Store::Element*>(s.next) + d * size_t(cache.block_tokens);
    float* out = s.out + size_t(row) * width + d;
    const float* weights = s.weights + size_t(row) * lanes;
    F32x16 sum[Rows][Vectors];
    unroll<Rows>([&](auto r) BN_LAMBDA {
        unroll<Vectors>([&](auto v) BN_LAMBDA {
            sum[r][v] = load(out + size_t(r) * width + 16 * v) * fill(s.shrink[row + r]);
        });
    });
    for (int token = 0; token < s.visible[row]; ++token) {
        F32x16 value[Vectors];
        __builtin_prefetch(next + size_t(token) * (16 * Vectors), 0, 2);
        unroll<Vectors>([&](auto v) BN_LAMBDA { value[v] = Store::load(values + size_t(token) * width + 16 * v); });
        unroll<Rows>([&](auto r) BN_LAMBDA {
            const F32x16 weight = fill(weights[size_t(r) * lanes + size_t(token)]);
            unroll<Vectors>([&](auto v) BN_LAMBDA { sum[r][v] = fused(weight, value[v], sum[r][v]); });
        });
    }
    unroll<Rows>([&](auto r) BN_LAMBDA {
        unroll<Vectors>([&](auto v) BN_LAMBDA { store(out + size_t(r) * width + 16 * v, sum[r][v]); });
    });
}

template <class Store, int Rows>
BN_INLINE void add_values(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page) {
    const size_t width = size_t(cache.value_lanes);
    size_t d = 0;
    for (; d + 16 * kTileVectors <= width; d += 16 * kTileVectors)
        value_tile<Store, Rows, kTileVectors>(s, row, cache, page, d);
    for (; d < width; d += 16) value_tile<Store, Rows, 1>(s, row, cache, page, d);
}

constexpr float kInfinity = __builtin_inff();
constexpr int32_t kSteps[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores of one row to probabilities; `scales` (keys, then values) where the cache is int8.
BN_INLINE void soften(const AttentionState& s, int row, const bn_cache& cache, float scale, const float* scales) {
    const int lanes = cache.token_lanes, seen = s.seen;
    float* weights = s.weights + size_t(row) * size_t(lanes);
    const I32x16 steps = load(kSteps);
    F32x16 highest = fill(-kInfinity);
    for (int t = 0; t < seen; t += 16) {
        F32x16 score = load(weights + t);
        if (scales) score = score * load(scales + t);
        score = select(less(steps + fill(t), fill(s.visible[row])), score * fill(scale), fill(-kInfinity));
        store(weights + t, score);
        highest = larger(score, highest);
    }
    const float tile_top = largest(highest), top = tile_top > s.top[row] ? tile_top : s.top[row];
    float shrink[16];
    store(shrink, exp_nonpositive(fill(s.top[row]) - fill(top)));
    F32x16 sum = fill(0.0f);
    for (int t = 0; t < seen; t += 16) {
        const F32x16 probability = exp_nonpositive(load(weights + t) - fill(top));
        sum = sum + probability;
        store(weights + t, scales ? probability * load(scales + lanes + t) : probability);
    }
    s.shrink[row] = shrink[0];
    s.mass[row] = s.mass[row] * shrink[0] + total(sum);
    s.top[row] = top;
}

// body(Index<n>, row) over the rows, n of kTileRows, 4 and 1: the largest that is left and of which `fits(n, row)` says
// yes. The operations for a row are the same whatever n is.
template <int Rows, class Fits, class Body>
BN_INLINE int one_tile(int row, int rows, const Fits& fits, const Body& body) {
    if constexpr (Rows > 1) {
        if (row + Rows > rows || !fits(Rows, row))
            return one_tile<(Rows > 4 ? 4 : 1)>(row, rows, fits, body);
    }
    body(Index<Rows>{}, row);
    return row + Rows;
}

template <class Store>
void attend_tile(const AttentionState& s, int rows, const bn_cache& cache, const uint8_t* page, float scale) {
    const float* scales = cache.is_int8 ? reinterpret_cast<const float*>(page + cache.scales_offset) : nullptr;
    int first = 0;
    while (s.visible[first] == 0) ++first;  // the last row sees something
    for (int row = first; row < rows;)
        row = one_tile<kTileRows>(row, rows, [](int, int) { return true; }, [&](auto n, int at) BN_LAMBDA {
            score_rows<Store, decltype(n)::value>(s, at, cache, page);
        });
    for (int row = first; row < rows; ++row) soften(s, row, cache, scale, scales);
    const auto see_the_same = [&](int n, int at) { return s.visible[at] == s.visible[at + n - 1]; };
    for (int row = first; row < rows;)
        row = one_tile<kTileRows>(row, rows, see_the_same, [&](auto n, int at) BN_LAMBDA {
            add_values<Store, decltype(n)::value>(s, at, cache, page);
        });
}

void attend(const bitnet::AttentionPart& part, const bn_cache& cache, float* scratch) {
    const int width = cache.head_dim, group = part.group, rows = part.queries * group;
    const size_t lanes = size_t(cache.token_lanes), padded = size_t(cache.value_lanes);
    AttentionState s;
    s.weights = scratch;
    s.out = s.weights + size_t(rows) * lanes;
    s.top = s.out + size_t(rows) * padded;
    s.mass = s.top + rows;
    s.shrink = s.mass + rows;
    s.visible = reinterpret_cast<int32_t*>(s.shrink + rows);
    s.q = reinterpret_cast<const float**>(scratch + size_t(rows) * (lanes + padded + 4));  // even: 8-byte aligned
    const auto vector_of = [&](int row) {  // where a row's vector starts, in q and in out
        return (size_t(row / group) * size_t(part.heads) + size_t(part.first_head + row % group)) * size_t(width);
    };
    for (int row = 0; row < rows; ++row) {
        s.q[row] = part.q + vector_of(row);
        s.top[row] = -kInfinity;
        s.mass[row] = 0.0f;
    }
    __builtin_memset(s.out, 0, sizeof(float) * size_t(rows) * padded);
    const float scale = 1.0f / __builtin_sqrtf(float(width));
    const int64_t last = part.first_position + part.queries;  // keys the last query sees
    for (int64_t first = 0; first < last; first += cache.block_tokens) {
        const int32_t block = part.block_ids[first / cache.block_tokens];
        const uint8_t* page = page_of(cache, block, part.layer, part.kv_head);
        const int64_t after = first + cache.block_tokens < last ? first / cache.block_tokens + 1 : 0;
        s.next = page_of(cache, part.block_ids[after], part.layer, part.kv_head);
        for (int row = 0; row < rows; ++row) {
            const int64_t seen = part.first_position + row / group + 1 - first;
            s.visible[row] = int32_t(seen < 0 ? 0 : seen < cache.block_tokens ? seen : cache.block_tokens);
        }
        s.seen = (s.visible[rows - 1] + 15) / 16 * 16;
        const auto tile = cache.is_int8 ? attend_tile<Int8> : attend_tile<Bf16>;
        tile(s, rows, cache, page, scale);
    }
    for (int row = 0; row < rows; ++row) {
        float* to = part.out + vector_of(row);
        for (int d = 0; d < width; d += 16)
            store(to + d, load(s.out + size_t(row) * padded + size_t(d)) / fill(s.mass[row]), width - d);
    }
}

}  // namespace
