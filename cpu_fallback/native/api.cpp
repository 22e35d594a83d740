// The C functions: check what would touch foreign memory, hold the context, and turn exceptions into messages.
#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>

#include "context.h"

namespace {

// Runs body under the context's lock. Nothing may leave a C function by exception.
template <class Body>
const char* guarded(bn_context* context, const Body& body) {
    try {
        std::lock_guard<std::mutex> lock(context->busy);
        return body(*context);
    } catch (const std::bad_alloc&) {
        return "out of memory";
    } catch (const std::system_error&) {
        return "the system refused a thread";
    }
}

const char* refuse_step(const bn_plan& plan, const bn_batch& batch, const bn_cache& cache) {
    const int32_t last_layer = plan.num_layers - 1;
    if (const char* refusal = bitnet::refuse_writes(batch, cache, plan.rope, last_layer)) return refusal;
    if (const char* refusal = bitnet::refuse_reads(batch, cache, last_layer)) return refusal;
    const char* ids = bitnet::refuse_ids(batch.token_ids, batch.tokens, plan.embedding.rows, 0, "token id");
    return ids ? ids : bitnet::refuse_ids(batch.logit_rows, batch.wanted, batch.tokens, 0, "logit row");
}

}  // namespace

int32_t bn_abi_version(void) { return BN_ABI_VERSION; }

const char* bn_isa_refusal(const char* isa) { return bitnet::isa_refusal(isa); }

bn_context* bn_open(const char* isa, int32_t threads) {
    const bitnet::Kernels* kernels = bitnet::kernels_named(isa);
    if (!kernels) return nullptr;
    try {
        return new bn_context(kernels, std::max(1, threads));
    } catch (const std::exception&) {
        return nullptr;
    }
}

void bn_close(bn_context* context) { delete context; }

const char* bn_set_threads(bn_context* context, int32_t threads) {
    return guarded(context, [&](bn_context& c) -> const char* {
        c.pool.resize(std::max(1, threads));
        return nullptr;
    });
}

void* bn_allocate(size_t bytes, int32_t huge) { return bitnet::allocate_pages(bytes, huge != 0); }

void bn_release(void* memory, size_t bytes) { bitnet::release_pages(memory, bytes); }

const char* bn_pack(bn_context* context, const bn_segment* segments, int32_t num_segments, bn_weights* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (bitnet::has_code_three(segments, num_segments, out->width)) return "code 3 in the packed weights";
        bitnet::pack(c, segments, num_segments, *out);
        return nullptr;
    });
}

const char* bn_pack_table(bn_context* context, const void* weight, int32_t is_bf16, bn_table* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        bitnet::pack_table(c, weight, is_bf16 != 0, *out);
        return nullptr;
    });
}

void bn_cache_shape(bn_cache* cache) {
    const auto whole = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    const size_t element = cache->is_int8 ? 1 : 2;
    cache->token_lanes = (cache->block_tokens + 15) / 16 * 16;
    cache->value_lanes = (cache->head_dim + 15) / 16 * 16;
    cache->values_offset = whole(element * size_t(cache->head_dim) * size_t(cache->token_lanes));
    const size_t values = size_t(cache->block_tokens) * size_t(cache->value_lanes);
    cache->scales_offset = cache->values_offset + whole(element * values);
    const size_t scales = cache->is_int8 ? 2 * sizeof(float) * size_t(cache->token_lanes) : 0;
    cache->head_bytes = cache->scales_offset + whole(scales);
}

const char* bn_zero_blocks(const bn_cache* cache, const int64_t* block_ids, int32_t count) {
    if (const char* refusal = bitnet::refuse_ids(block_ids, count, cache->blocks, 0, "block")) return refusal;
    const size_t bytes = size_t(cache->layers) * size_t(cache->kv_heads) * cache->head_bytes;
    for (int32_t i = 0; i < count; ++i) std::memset(cache->base + size_t(block_ids[i]) * bytes, 0, bytes);
    return nullptr;
}

const char* bn_embed(bn_context* context, const bn_table* table, const int64_t* ids, int32_t count, float* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (!table->refinement) return "the table was not packed as an embedding";
        if (const char* refusal = bitnet::refuse_ids(ids, count, table->rows, 0, "token id")) return refusal;
        bitnet::embed(c, *table, ids, count, out);
        return nullptr;
    });
}

const char* bn_norm_quantize(bn_context* context, const float* x, const float* gain, float eps,
                             const bn_quantized* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        bitnet::norm_quantize(c, x, gain, eps, *out);
        return nullptr;
    });
}

const char* bn_gate_norm_quantize(bn_context* context, const float* gate_up, const float* gain, float eps,
                                  int32_t act, const bn_quantized* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        bitnet::gate_norm_quantize(c, gate_up, gain, eps, act, *out);
        return nullptr;
    });
}

const char* bn_linear(bn_context* context, const bn_quantized* q, const bn_weights* w, const float* residual,
                      float* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        bitnet::linear(c, *q, *w, residual, out);
        return nullptr;
    });
}

const char* bn_rope_write(bn_context* context, const float* qkv, int32_t heads, const bn_rope* rope,
                          const bn_cache* cache, int32_t layer, const bn_batch* batch, float* q_out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (const char* refusal = bitnet::refuse_writes(*batch, *cache, *rope, layer)) return refusal;
        bitnet::rope_write(c, qkv, heads, *rope, *cache, layer, *batch, q_out);
        return nullptr;
    });
}

const char* bn_attention(bn_context* context, const float* q, int32_t heads, const bn_cache* cache, int32_t layer,
                         const bn_batch* batch, float* out) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (const char* refusal = bitnet::refuse_reads(*batch, *cache, layer)) return refusal;
        bitnet::attention(c, q, heads, *cache, layer, *batch, out);
        return nullptr;
    });
}

const char* bn_head(bn_context* context, const float* x, const float* gain, float eps, const bn_table* table,
                    int32_t rows, float* logits) {
    return guarded(context, [&](bn_context& c) -> const char* {
        bitnet::head(c, x, gain, eps, *table, rows, logits);
        return nullptr;
    });
}

const char* bn_head_topk(bn_context* context, const float* x, const float* gain, float eps, const bn_table* table,
                         int32_t rows, int32_t k, const int64_t* extra_ids, int32_t extra, int64_t* ids,
                         float* logits) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (const char* refusal = bitnet::refuse_ids(extra_ids, rows * extra, table->rows, -1, "extra id"))
            return refusal;
        bitnet::head_topk(c, x, gain, eps, *table, rows, k, extra_ids, extra, ids, logits);
        return nullptr;
    });
}

const char* bn_head_draw(bn_context* context, const float* x, const float* gain, float eps, const bn_table* table,
                         const bn_draws* draws, int64_t* ids) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (const char* refusal = bitnet::refuse_draws(*draws, *table)) return refusal;
        bitnet::head_draw(c, x, gain, eps, *table, *draws, 0, ids);
        return nullptr;
    });
}

const char* bn_step(bn_context* context, const bn_plan* plan, const bn_batch* batch, const bn_cache* cache,
                    float* hidden) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (const char* refusal = refuse_step(*plan, *batch, *cache)) return refusal;
        bitnet::step(c, *plan, *batch, *cache, hidden);
        return nullptr;
    });
}

const char* bn_decode(bn_context* context, const bn_plan* plan, const bn_decoding* rows, const bn_cache* cache,
                      const bn_draws* draws, int64_t* ids) {
    return guarded(context, [&](bn_context& c) -> const char* {
        if (draws->num_rows != rows->requests) return "there must be one draw for each row";
        if (const char* refusal = bitnet::refuse_decoding(*rows, *cache, *plan, draws->rounds)) return refusal;
        if (const char* refusal = bitnet::refuse_draws(*draws, plan->head)) return refusal;
        bitnet::decode(c, *plan, *rows, *cache, *draws, ids);
        return nullptr;
    });
}
