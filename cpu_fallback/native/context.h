// What a bn_context holds, and the verbs on it that the C functions and the whole step share.
#pragma once

#include <mutex>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "pool.h"

struct bn_context {
    bn_context(const bitnet::Kernels* table, int threads) : kernels(table), pool(threads) {}

    const bitnet::Kernels* kernels;
    bitnet::Pool pool;
    bitnet::Scratch worker_scratch;  // cut into one part a worker
    bitnet::Scratch step_scratch;    // the activations of a step, or of a head
    bitnet::Scratch logit_scratch;   // the logits a top-k is taken of
    bitnet::Scratch wide_scratch{true};  // of a wide linear, cut into one part a worker
    bitnet::Scratch round_scratch;   // the batch and the hidden states of a round of decoding
    std::vector<int32_t> piece_ends; // of the linear under way
    std::mutex busy;                 // one caller at a time
};

// Each verb is cut into items that do not share output; no result depends on how.
namespace bitnet {

size_t code_stride(int32_t width);  // bytes of one row of codes
size_t low_stride(int32_t width);   // bytes of one row of a table's lower halves

void embed(bn_context& c, const bn_table& table, const int64_t* ids, int32_t count, float* out);
void norm_quantize(bn_context& c, const float* x, const float* gain, float eps, const bn_quantized& out);
void gate_norm_quantize(bn_context& c, const float* gate_up, const float* gain, float eps, int32_t act,
                        const bn_quantized& out);
void linear(bn_context& c, const bn_quantized& q, const bn_weights& w, const float* residual, float* out);
void rope_write(bn_context& c, const float* qkv, int32_t heads, const bn_rope& rope, const bn_cache& cache,
                int32_t layer, const bn_batch& batch, float* q_out);
void attention(bn_context& c, const float* q, int32_t heads, const bn_cache& cache, int32_t layer,
               const bn_batch& batch, float* out);
// The activations of a head, in scratch that the next step or head takes over.
bn_quantized quantize_for_head(bn_context& c, const float* x, const float* gain, float eps, int32_t width,
                               int32_t rows);
// Of a table in halves: the sums over the upper ones, [T][stride]; all logits, [T][V].
void screen_sums(bn_context& c, const bn_quantized& q, const bn_table& table, int32_t* sums, size_t stride);
// Each token's codes in the order of a row's lower halves (see low_sum in screen.h), zeros beyond the width.
void order_codes(const bn_quantized& q, size_t ordered, int8_t* to);
void head_of_halves(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits);
void head_of(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits);  // [T][V]
void head(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table, int32_t rows,
          float* logits);
void head_topk(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table, int32_t rows,
               int32_t k, const int64_t* extra_ids, int32_t extra, int64_t* ids, float* logits);
// The tokens of one round, into ids[round]; the rounds before it are read.
void head_draw(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table,
               const bn_draws& draws, int32_t round, int64_t* ids);
void step(bn_context& c, const bn_plan& plan, const bn_batch& batch, const bn_cache& cache, float* hidden);
void decode(bn_context& c, const bn_plan& plan, const bn_decoding& rows, const bn_cache& cache, const bn_draws& draws,
            int64_t* ids);

void pack(bn_context& c, const bn_segment* segments, int32_t num_segments, const bn_weights& out);
bool has_code_three(const bn_segment* segments, int32_t num_segments, int32_t width);
void pack_table(bn_context& c, const void* weight, bool is_bf16, const bn_table& out);

// nullptr, or what is wrong with a batch's indices: nothing outside the cache and the tables is ever touched.
const char* refuse_writes(const bn_batch& batch, const bn_cache& cache, const bn_rope& rope, int32_t layer);
const char* refuse_reads(const bn_batch& batch, const bn_cache& cache, int32_t layer);
const char* refuse_decoding(const bn_decoding& rows, const bn_cache& cache, const bn_plan& plan, int32_t rounds);
const char* refuse_draws(const bn_draws& draws, const bn_table& table);
const char* refuse_ids(const int64_t* ids, int32_t count, int32_t limit, int32_t least, const char* what);

}  // namespace bitnet
