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
    int32_t* visible;     // [rows] tokens of the current tile the row may see
};

template <class Store, int Rows>
BN_INLINE void score_rows(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page) {
    const size_t lanes = size_t(cache.token_lanes);
    const auto* keys = reinterpret_cast<const typename Store::Element*>(page);
    for (size_t token = 0; token < lanes; token += 16) {
        F32x16 sum[Rows];
        unroll<Rows>([&](auto r) BN_LAMBDA { sum[r] = fill(0.0f); });
        for (int d = 0; d < cache.head_dim; ++d) {
            const F32x16 key = Store::load(keys + size_t(d) * lanes + token);
            unroll<Rows>([&](auto r) BN_LAMBDA { sum[r] = sum[r] + fill(s.q[row + r][d]) * key; });
        }
        unroll<Rows>([&](auto r) BN_LAMBDA { store(s.weights + size_t(row + r) * lanes + token, sum[r]); });
    }
}

template <class Store, int Rows>
BN_INLINE void add_values(const AttentionState& s, int row, const bn_cache& cache, const uint8_t* page) {
    const size_t lanes = size_t(cache.token_lanes), width = size_t(cache.value_lanes);
    const auto* values = reinterpret_cast<const typename Store::Element*>(page + cache.values_offset);
    const int visible = s.visible[row];  // the same for every row of the call
    for (size_t d = 0; d < width; d += 16) {
        F32x16 sum[Rows];
        unroll<Rows>([&](auto r) BN_LAMBDA {
            sum[r] = load(s.out + size_t(row + r) * width + d) * fill(s.shrink[row + r]);
        });
        for (int token = 0; token < visible; ++token) {
            const F32x16 value = Store::load(values + size_t(token) * width + d);
            unroll<Rows>([&](auto r) BN_LAMBDA {
                sum[r] = sum[r] + fill(s.weights[size_t(row + r) * lanes + size_t(token)]) * value;
            });
        }
        unroll<Rows>([&](auto r) BN_LAMBDA { store(s.out + size_t(row + r) * width + d, sum[r]); });
    }
}

constexpr float kInfinity = __builtin_inff();
constexpr int32_t kSteps[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores of one row to probabilities; `scales` (keys, then values) where the cache is int8.
BN_INLINE void soften(const AttentionState& s, int row, const bn_cache& cache, float scale, const float* scales) {
    const int lanes = cache.token_lanes;
    float* weights = s.weights + size_t(row) * size_t(lanes);
    const I32x16 steps = load(kSteps);
    F32x16 highest = fill(-kInfinity);
    for (int t = 0; t < lanes; t += 16) {
        F32x16 score = load(weights + t);
        if (scales) score = score * load(scales + t);
        score = select(less(steps + fill(t), fill(s.visible[row])), score * fill(scale), fill(-kInfinity));
        store(weights + t, score);
        highest = larger(score, highest);
    }
    const float tile_top = largest<float>(highest), top = tile_top > s.top[row] ? tile_top : s.top[row];
    float shrink[16];
    store(shrink, exp_nonpositive(fill(s.top[row]) - fill(top)));
    F32x16 sum = fill(0.0f);
    for (int t = 0; t < lanes; t += 16) {
        const F32x16 probability = exp_nonpositive(load(weights + t) - fill(top));
        sum = sum + probability;
        store(weights + t, scales ? probability * load(scales + lanes + t) : probability);
    }
    s.shrink[row] = shrink[0];
    s.mass[row] = s.mass[row] * shrink[0] + total<float>(sum);
    s.top[row] = top;
}

// Four rows at a time where they see the same tokens, else one by one: the same operations either way.
BN_INLINE bool same_sight(const AttentionState& s, int row, int rows) {
    if (row + 4 > rows) return false;
    return s.visible[row] == s.visible[row + 1] && s.visible[row] == s.visible[row + 2] &&
           s.visible[row] == s.visible[row + 3];
}

template <class Store>
void attend_tile(const AttentionState& s, int rows, const bn_cache& cache, const uint8_t* page, float scale) {
    const float* scales = cache.is_int8 ? reinterpret_cast<const float*>(page + cache.scales_offset) : nullptr;
    for (int row = 0; row < rows;) {
        const bool four = same_sight(s, row, rows);
        if (s.visible[row] > 0) {
            four ? score_rows<Store, 4>(s, row, cache, page) : score_rows<Store, 1>(s, row, cache, page);
            for (int r = row; r < row + (four ? 4 : 1); ++r) soften(s, r, cache, scale, scales);
            four ? add_values<Store, 4>(s, row, cache, page) : add_values<Store, 1>(s, row, cache, page);
        }
        row += four ? 4 : 1;
    }
}

void attend(const bitnet::AttentionPart& part, const bn_cache& cache, float* scratch) {
    const int width = cache.head_dim, group = part.heads / cache.kv_heads, rows = part.queries * group;
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
        return (size_t(row / group) * size_t(part.heads) + size_t(part.kv_head * group + row % group)) * size_t(width);
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
        for (int row = 0; row < rows; ++row) {
            const int64_t seen = part.first_position + row / group + 1 - first;
            s.visible[row] = int32_t(seen < 0 ? 0 : seen < cache.block_tokens ? seen : cache.block_tokens);
        }
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
