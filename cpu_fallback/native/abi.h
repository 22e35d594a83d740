// The plain C interface of libbitnet_native: what a caller sees, and the words the sources share.
//
// Axis letters: T tokens of a step, B requests, H hidden, K in, N out, F ffn, V vocabulary, D head size, R rows wanted.
// The library knows neither Python nor torch nor the model's file: only pointers and extents. Every function that can
// refuse returns NULL when it succeeded, or a message that lives until the thread's next call. A context serves one
// caller at a time; the caller keeps every buffer alive for the call. Python mirrors these structs in
// cpu_fallback/native_library.py: change both, and BN_ABI_VERSION.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define BN_ABI_VERSION 4

extern "C" {

typedef struct bn_context bn_context;

// Ternary weights. blocks[ceil(N/16)][ceil(K/16)][64]: byte j of a block belongs to row j/4, its bit pair p to
// k = 16 * block + 4 * p + j % 4; code = ternary + 1. Rows and columns of the padding hold the neutral code 1.
typedef struct {
    uint8_t* blocks;
    const float* row_scale;  // [ceil(N/16) * 16]
    int32_t rows, width;     // N, K
} bn_weights;

// One segment of a fused linear: planes [rows/4][K], byte r of a column holds rows r, r + rows/4, ... low bits first.
typedef struct {
    const uint8_t* planes;
    int32_t rows;
} bn_segment;

// Activations. codes [T][ceil(K/16) * 16] (0 in the padding), scale [T], sums [T] of a row's codes.
typedef struct {
    int8_t* codes;
    float* scale;
    int32_t* sums;
    int32_t tokens, width;  // T, K
} bn_quantized;

// An int8 vocabulary table. Whole (low NULL): blocks[ceil(V/16)][ceil(H/4)][64], byte j belongs to row j/4 and
// k = 4 * block + j % 4. In halves: blocks[ceil(V/16)][ceil(H/8)][64] has the upper halves of code + 128, byte j of row
// j/4 those of k = 8 * block + j % 4 (its lower four bits) and of k + 4; low[ceil(V/16) * 16][ceil(H/128) * 64] a row's
// lower halves, byte j those of k = 8 * (j/4) + j % 4 and of k + 4. See screening.h.
// refinement[V][H/2] (NULL: no embedding): four bits more of each value, for lookups; bits 4 (k % 2) of byte k/2 say in
// which sixteenth of its step a value lies. int8 alone cost too much: see pack.cpp.
typedef struct {
    int8_t* blocks;
    float* row_scale;   // [ceil(V/16) * 16]
    int32_t* row_sums;  // [ceil(V/16) * 16]
    uint8_t* refinement;
    uint8_t* low;
    int32_t rows, width;
} bn_table;

// The paged cache: base[blocks][layers][kv_heads] pages of head_bytes. A page: keys [D][token_lanes], at
// values_offset values [block_tokens][value_lanes], at scales_offset (int8) float scales of keys, then of values,
// [token_lanes] each. Keys lie transposed so that scores of 16 tokens are computed side by side.
typedef struct {
    uint8_t* base;
    int32_t layers, blocks, block_tokens, kv_heads, head_dim, is_int8;
    int32_t token_lanes, value_lanes;
    size_t values_offset, scales_offset, head_bytes;
} bn_cache;

typedef struct {
    const float *cos, *sin;  // [positions][D/2]
    int32_t positions;
} bn_rope;

typedef struct {
    const int64_t *token_ids, *positions, *slots;  // [T]
    const int32_t *block_tables, *lengths, *starts;  // [B][max_blocks], [B], [B+1]
    const int64_t* logit_rows;                       // [R]
    int32_t tokens, requests, max_blocks, wanted;    // T, B, max_blocks, R
} bn_batch;

typedef struct {
    const float *attn_gain, *attn_sub_gain, *ffn_gain, *ffn_sub_gain;  // a sub gain may be NULL
    bn_weights qkv, o, gate_up, down;
} bn_layer;

enum { BN_RELU2 = 0, BN_SILU = 1 };

typedef struct {
    int32_t hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, act, num_layers;
    float eps;
    bn_rope rope;
    bn_table embedding;
    const bn_layer* layers;
    const float* head_gain;
    bn_table head;
} bn_plan;

// Rows of one token each, the newest of a request: what a step of nothing but such rows needs to know.
typedef struct {
    const int64_t* token_ids;                // [B]
    const int32_t *block_tables, *lengths;   // [B][max_blocks]; [B] keys visible to the token, its own included
    int32_t requests, max_blocks;            // B, max_blocks
} bn_decoding;

// How the next token of a row is drawn: penalties over its last_n tokens, the top_k likeliest (at least 1), top_p (1:
// all), min_p (0: all), then the temperature and one number of [0, 1); temperature 0 takes the likeliest.
typedef struct {
    double temperature, top_k, top_p, min_p, repeat, presence, frequency, last_n;
} bn_draw;

// The draws of R rows, and of `rounds` tokens for each, one after the other. Row r's part of a ragged list is
// starts[r] .. starts[r+1]-1.
typedef struct {
    const bn_draw* rows;          // [R]
    const double* randoms;        // [rounds][R]
    const int64_t* windows;       // [window_starts[R]]: the tokens whose logits are penalised, as often as they occur
    const int32_t* window_starts; // [R+1]
    const int64_t* bias_ids;      // [bias_starts[R]]: tokens with a bias, added first; -infinity forbids one
    const float* biases;
    const int32_t* bias_starts;   // [R+1]
    int32_t num_rows, rounds;
} bn_draws;

// Instead of a token: the row's logits are no finite numbers, or its biases forbid every token.
enum { BN_NOT_FINITE = -1, BN_ALL_BANNED = -2 };

#define BN_API __attribute__((visibility("default")))

BN_API int32_t bn_abi_version(void);
BN_API const char* bn_isa_refusal(const char* isa);  // NULL: this machine runs it
BN_API bn_context* bn_open(const char* isa, int32_t threads);  // NULL: unknown or refused isa, or out of memory
BN_API void bn_close(bn_context* context);
BN_API const char* bn_set_threads(bn_context* context, int32_t threads);

// Zero pages, taken from the system as they are touched, by huge pages where `huge` (what is read from end to end);
// NULL when refused.
BN_API void* bn_allocate(size_t bytes, int32_t huge);
BN_API void bn_release(void* memory, size_t bytes);

BN_API const char* bn_pack(bn_context* context, const bn_segment* segments, int32_t num_segments, bn_weights* out);
BN_API const char* bn_pack_table(bn_context* context, const void* weight, int32_t is_bf16, bn_table* out);
BN_API void bn_cache_shape(bn_cache* cache);  // fills lanes, offsets and head_bytes from the extents
BN_API const char* bn_zero_blocks(const bn_cache* cache, const int64_t* block_ids, int32_t count);

BN_API const char* bn_embed(bn_context* context, const bn_table* table, const int64_t* ids, int32_t count, float* out);
BN_API const char* bn_norm_quantize(bn_context* context, const float* x, const float* gain, float eps,
                                    const bn_quantized* out);  // gain NULL: plain quantize
BN_API const char* bn_gate_norm_quantize(bn_context* context, const float* gate_up, const float* gain, float eps,
                                         int32_t act, const bn_quantized* out);
BN_API const char* bn_linear(bn_context* context, const bn_quantized* q, const bn_weights* w, const float* residual,
                             float* out);
BN_API const char* bn_rope_write(bn_context* context, const float* qkv, int32_t heads, const bn_rope* rope,
                                 const bn_cache* cache, int32_t layer, const bn_batch* batch, float* q_out);
BN_API const char* bn_attention(bn_context* context, const float* q, int32_t heads, const bn_cache* cache,
                                int32_t layer, const bn_batch* batch, float* out);
BN_API const char* bn_head(bn_context* context, const float* x, const float* gain, float eps, const bn_table* table,
                           int32_t rows, float* logits);
BN_API const char* bn_head_topk(bn_context* context, const float* x, const float* gain, float eps,
                                const bn_table* table, int32_t rows, int32_t k, const int64_t* extra_ids,
                                int32_t extra, int64_t* ids, float* logits);
// ids [R]: the token drawn, or why there is none. draws->rounds is 1.
BN_API const char* bn_head_draw(bn_context* context, const float* x, const float* gain, float eps,
                                const bn_table* table, const bn_draws* draws, int64_t* ids);
BN_API const char* bn_step(bn_context* context, const bn_plan* plan, const bn_batch* batch, const bn_cache* cache,
                           float* hidden);  // [R][H], before the final norm
// draws->rounds steps, each of the tokens that the one before it drew. ids [rounds][B]: the tokens drawn, or why there
// is none (then also in the rounds that follow).
BN_API const char* bn_decode(bn_context* context, const bn_plan* plan, const bn_decoding* rows, const bn_cache* cache,
                             const bn_draws* draws, int64_t* ids);

}  // extern "C"
