// Norm, gate, quantize, rotary embedding and the cache writes, one token at a time.
//
// Sums of a row run in 64 lanes (element k in lane k % 64), then by a fixed tree, so a row's result depends on the row
// alone. A NaN or infinity in a row shows in its scale: |y| is compared as an integer, where NaN is the largest.
#pragma once

#include "pages.h"

namespace {

constexpr float kLeastMaximum = 1e-5f;  // of |y|: an all-zero row gets codes 0 and a finite scale

BN_INLINE float mean_of_squares(const float* x, int width) {
    F32x16 lanes[4] = {fill(0.0f), fill(0.0f), fill(0.0f), fill(0.0f)};
    for (int k = 0; k < width; k += 64)
        unroll<4>([&](auto i) BN_LAMBDA {
            if (k + 16 * i < width) {
                const F32x16 v = load(x + k + 16 * i, width - k - 16 * i);
                lanes[i] = lanes[i] + v * v;
            }
        });
    return total((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) / float(width);
}

// Codes of a row whose 16 values at k are value(k, count): clamp(rint(y * (127 / a)), -127, 127), a = max |y|.
template <class Value>
BN_INLINE float quantize(int width, int8_t* codes, int32_t* sum, const Value& value) {
    I32x16 highest = fill(0);
    for (int k = 0; k < width; k += 16) highest = larger(magnitude_bits(value(k, width - k)), highest);
    const int32_t top = largest(highest);
    float a;
    __builtin_memcpy(&a, &top, sizeof a);
    if (a < kLeastMaximum) a = kLeastMaximum;  // false for NaN
    const F32x16 inverse = fill(127.0f / a), bound = fill(127.0f);
    I32x16 running = fill(0);
    for (int k = 0; k < width; k += 16) {
        const F32x16 scaled = value(k, width - k) * inverse;
        const I32x16 code = to_int(nearest(smaller(larger(scaled, fill(-127.0f)), bound)));  // NaN: -127
        running = running + code;
        store_bytes(codes + k, code);
    }
    if (sum) *sum = total(running);
    return a / 127.0f;
}

BN_INLINE void normalize_and_quantize(const float* x, const float* gain, float r, const bn_quantized& out, int token) {
    const int width = out.width;
    int8_t* codes = out.codes + size_t(token) * size_t((width + 15) / 16 * 16);
    const F32x16 factor = fill(r);
    if (gain)
        out.scale[token] = quantize(width, codes, out.sums + token, [&](int k, int count) BN_LAMBDA {
            return (load(x + k, count) * factor) * load(gain + k, count);
        });
    else
        out.scale[token] = quantize(width, codes, out.sums + token,
                                    [&](int k, int count) BN_LAMBDA { return load(x + k, count); });
}

BN_INLINE float inverse_root(float mean, float eps) { return 1.0f / __builtin_sqrtf(mean + eps); }

void norm_quantize(const float* x, const float* gain, float eps, const bn_quantized& out, int32_t token) {
    const float* row = x + size_t(token) * size_t(out.width);
    normalize_and_quantize(row, gain, gain ? inverse_root(mean_of_squares(row, out.width), eps) : 1.0f, out, token);
}

BN_INLINE F32x16 squared_relu(const F32x16& g) {
    const F32x16 positive = select(less(g, fill(0.0f)), fill(0.0f), g);  // a NaN stays
    return positive * positive;
}

// g * sigmoid(g), through e^-|g| so that nothing overflows.
BN_INLINE F32x16 silu(const F32x16& g) {
    const F32x16 one = fill(1.0f), e = exp_nonpositive(fill(0.0f) - as_float(magnitude_bits(g)));
    return g * (select(less(g, fill(0.0f)), e, one) / (one + e));
}

void gate_norm_quantize(const float* gate_up, const float* gain, float eps, int32_t act, float* scratch,
                        const bn_quantized& out, int32_t token) {
    const int width = out.width;
    const float *gate = gate_up + size_t(token) * 2 * size_t(width), *up = gate + width;
    for (int k = 0; k < width; k += 16) {
        const F32x16 g = load(gate + k, width - k);
        store(scratch + k, (act == BN_SILU ? silu(g) : squared_relu(g)) * load(up + k, width - k), width - k);
    }
    normalize_and_quantize(scratch, gain, gain ? inverse_root(mean_of_squares(scratch, width), eps) : 1.0f, out, token);
}

// NeoX halves: (a, b) -> (a cos - b sin, b cos + a sin).
BN_INLINE void rotate(const float* from, const float* cos, const float* sin, int half, float* to) {
    for (int i = 0; i < half; i += 16) {
        const int count = half - i;
        const F32x16 a = load(from + i, count), b = load(from + half + i, count);
        const F32x16 c = load(cos + i, count), s = load(sin + i, count);
        store(to + i, a * c - b * s, count);
        store(to + half + i, b * c + a * s, count);
    }
}

BN_INLINE uint16_t to_bf16(float value) {  // half to even; NaN stays NaN
    uint32_t word;
    __builtin_memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffff) > 0x7f800000) return uint16_t((word >> 16) | 0x40);
    return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

// A head's vector into its page, elements `stride` apart; int8 with its own scale.
BN_INLINE void write_bf16(const float* from, int width, uint8_t* page, size_t first, size_t stride) {
    uint16_t* to = reinterpret_cast<uint16_t*>(page) + first;
    for (int d = 0; d < width; ++d) to[size_t(d) * stride] = to_bf16(from[d]);
}
BN_INLINE void write_int8(const float* from, int width, int8_t* codes, uint8_t* page, size_t first, size_t stride,
                          float* scale) {
    *scale = quantize(width, codes, nullptr, [&](int k, int count) BN_LAMBDA { return load(from + k, count); });
    int8_t* to = reinterpret_cast<int8_t*>(page) + first;
    for (int d = 0; d < width; ++d) to[size_t(d) * stride] = codes[d];
}

void rope_write(const float* qkv, const float* cos, const float* sin, int32_t heads, const bn_cache& cache,
                int32_t layer, int64_t slot, float* scratch, float* q_out) {
    const int width = cache.head_dim, kv_heads = cache.kv_heads;
    for (int h = 0; h < heads; ++h) rotate(qkv + h * width, cos, sin, width / 2, q_out + h * width);
    const int64_t block = slot / cache.block_tokens;
    const size_t offset = size_t(slot % cache.block_tokens), lanes = size_t(cache.token_lanes);
    int8_t* codes = reinterpret_cast<int8_t*>(scratch + width);  // [width rounded up to 16] bytes
    for (int h = 0; h < kv_heads; ++h) {
        uint8_t* page = page_of(cache, block, layer, h);
        const float *key = scratch, *value = qkv + (heads + kv_heads + h) * width;
        rotate(qkv + (heads + h) * width, cos, sin, width / 2, scratch);
        const size_t row = offset * size_t(cache.value_lanes);
        if (cache.is_int8) {
            float* scales = reinterpret_cast<float*>(page + cache.scales_offset);
            write_int8(key, width, codes, page, offset, lanes, scales + offset);
            write_int8(value, width, codes, page + cache.values_offset, row, 1, scales + lanes + offset);
        } else {
            write_bf16(key, width, page, offset, lanes);
            write_bf16(value, width, page + cache.values_offset, row, 1);
        }
    }
}

}  // namespace
