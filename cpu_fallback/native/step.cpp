// The whole step: the verbs in the order of the model's plan, on scratch that is kept between steps.
#include <algorithm>
#include <cstring>

#include "carver.h"
#include "context.h"

namespace bitnet {
namespace {

// Every activation of a step. `wide` is what the linears of a layer write in turn: q|k|v, then gate|up.
struct Activations {
    float *x, *wide, *q, *attended;
    int8_t* codes;
    float* scale;
    int32_t* sums;
};

Activations carve(Carver& carver, const bn_plan& plan, size_t tokens) {
    const size_t q_width = size_t(plan.num_heads) * size_t(plan.head_dim);
    const size_t qkv_width = size_t(plan.num_heads + 2 * plan.num_kv_heads) * size_t(plan.head_dim);
    const int32_t widest = std::max(std::max(plan.hidden_size, plan.intermediate_size), int32_t(q_width));
    Activations a;
    a.x = carver.take<float>(tokens * size_t(plan.hidden_size));
    a.wide = carver.take<float>(tokens * std::max(qkv_width, 2 * size_t(plan.intermediate_size)));
    a.q = carver.take<float>(tokens * q_width);
    a.attended = carver.take<float>(tokens * q_width);
    a.codes = carver.take<int8_t>(tokens * code_stride(widest));
    a.scale = carver.take<float>(tokens);
    a.sums = carver.take<int32_t>(tokens);
    return a;
}

}  // namespace

void step(bn_context& c, const bn_plan& plan, const bn_batch& batch, const bn_cache& cache, float* hidden) {
    Carver measure(nullptr);
    carve(measure, plan, size_t(batch.tokens));
    Carver carver(c.step_scratch.reserve(measure.used()));
    const Activations a = carve(carver, plan, size_t(batch.tokens));
    const auto quantized = [&](int32_t width) {
        return bn_quantized{a.codes, a.scale, a.sums, batch.tokens, width};
    };
    const bn_quantized narrow = quantized(plan.hidden_size), ffn = quantized(plan.intermediate_size);
    const bn_quantized heads = quantized(plan.num_heads * plan.head_dim);
    embed(c, plan.embedding, batch.token_ids, batch.tokens, a.x);
    for (int32_t l = 0; l < plan.num_layers; ++l) {
        const bn_layer& layer = plan.layers[l];
        norm_quantize(c, a.x, layer.attn_gain, plan.eps, narrow);
        linear(c, narrow, layer.qkv, nullptr, a.wide);
        rope_write(c, a.wide, plan.num_heads, plan.rope, cache, l, batch, a.q);
        attention(c, a.q, plan.num_heads, cache, l, batch, a.attended);
        norm_quantize(c, a.attended, layer.attn_sub_gain, plan.eps, heads);
        linear(c, heads, layer.o, a.x, a.x);
        norm_quantize(c, a.x, layer.ffn_gain, plan.eps, narrow);
        linear(c, narrow, layer.gate_up, nullptr, a.wide);
        gate_norm_quantize(c, a.wide, layer.ffn_sub_gain, plan.eps, plan.act, ffn);
        linear(c, ffn, layer.down, a.x, a.x);
    }
    const size_t width = size_t(plan.hidden_size);
    for (int32_t r = 0; r < batch.wanted; ++r)
        std::memcpy(hidden + size_t(r) * width, a.x + size_t(batch.logit_rows[r]) * width, sizeof(float) * width);
}

}  // namespace bitnet
