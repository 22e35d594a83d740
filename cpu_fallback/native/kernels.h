// What one instruction set offers: single-threaded kernels over a part of each verb's work.
//
// The verbs (verbs.cpp) cut the work and hand the parts to the pool; a kernel never sees a thread. All tables give the
// same bytes for the same input. A table is built by its own source file, compiled with its own flags.
#pragma once

#include "abi.h"

namespace bitnet {

// The queries of one request a kernel attends with at once, for all or some of the heads that share a key-value head.
struct AttentionPart {
    const float* q;            // [queries][heads][D], the first query of the part
    float* out;                // [queries][heads * D], the same
    const int32_t* block_ids;  // of the request
    int64_t first_position;    // of the first query
    int32_t queries, heads, layer, kv_head;
    int32_t first_head, group;  // the heads first_head .. first_head + group - 1
};

// The linear for a tile of up to `tokens` tokens (0: there is none), which pays from least_tokens on, over
// least_groups to most_groups groups of rows; scratch of so many bytes is best in huge pages.
struct WideKernels {
    int32_t tokens, least_tokens, least_groups, most_groups;
    size_t (*scratch)(const bn_weights& w, int32_t groups);
    void (*linear)(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int32_t first_token,
                   int32_t tokens, int32_t first_group, int32_t groups, uint8_t* scratch);
};

constexpr int32_t kLowChunk = 128;  // k of a row of a table's lower halves that lie in 64 bytes

struct Kernels {
    const char* isa;
    // Groups of 16 rows a tile takes at once: cut rows at multiples of it.
    int32_t row_groups, linear_groups, head_groups;  // of the linear for one token, for more, of the head
    void (*linear)(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int32_t first_group,
                   int32_t last_group);
    // blocks: of the first group, in the layout of a whole table.
    void (*head)(const bn_quantized& q, const bn_table& table, const int8_t* blocks, float* logits, int32_t first_group,
                 int32_t last_group);
    // Of a table in halves: a group as a whole table has it, and up to one block more (join.h); sums[T][stride] over
    // the upper halves, a row's sum over the lower ones, and the ids that can be among the largest (screen.h).
    void (*join)(const bn_table& table, int32_t group, int8_t* to);
    void (*screen)(const bn_quantized& q, const bn_table& table, int32_t* sums, size_t stride, int32_t first_group,
                   int32_t last_group);
    int32_t (*low_sum)(const uint8_t* low, const int8_t* x, int32_t chunks);
    int32_t (*pick)(const int32_t* sums, const float* row_scale, int32_t first, int32_t last, int32_t shift,
                    float scale, float bound, int32_t* ids);
    void (*norm_quantize)(const float* x, const float* gain, float eps, const bn_quantized& out, int32_t token);
    // scratch [F]
    void (*gate_norm_quantize)(const float* gate_up, const float* gain, float eps, int32_t act, float* scratch,
                               const bn_quantized& out, int32_t token);
    // One token: qkv row in, rotated q [heads][D] out, keys and values into the cache. scratch [2 D + 16]
    void (*rope_write)(const float* qkv, const float* cos, const float* sin, int32_t heads, const bn_cache& cache,
                       int32_t layer, int64_t slot, float* scratch, float* q_out);
    // scratch: attention_scratch() floats
    void (*attend)(const AttentionPart& part, const bn_cache& cache, float* scratch);
    WideKernels wide[3];  // the larger first
};

constexpr int32_t kAttentionRows = 32;  // (query, head) pairs of a part, unless one query's heads alone are more

int32_t attention_queries(int32_t heads_per_group);  // queries of a part
size_t attention_scratch(const bn_cache& cache, int32_t heads_per_group);  // floats

const Kernels* portable_kernels();
const Kernels* avx2_kernels();         // nullptr where the compiler could not build it
const Kernels* avx2_vnni_kernels();    // the same
const Kernels* avx512_vnni_kernels();  // the same
const Kernels* neon_dot_kernels();     // the same

const char* isa_refusal(const char* isa);      // nullptr: this machine runs it
const Kernels* kernels_named(const char* isa);  // nullptr when refused

}  // namespace bitnet
