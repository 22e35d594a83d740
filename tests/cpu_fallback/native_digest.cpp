// Prints "isa verb digest" for every instruction set this machine runs, of fixed pseudo-random inputs: machines that
// cannot run each other's code compare their results by these lines (test_native_arm.py).
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "abi.h"

namespace {

uint64_t random_state;

uint32_t random_word() {  // xorshift
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return uint32_t(random_state >> 32);
}

std::vector<float> floats(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = float(int32_t(random_word())) * 0x1p-30f;
    return values;
}

template <class T>
void report(const char* isa, const char* verb, const std::vector<T>& values) {
    uint64_t digest = 14695981039346656037u;  // FNV-1a
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size() * sizeof(T); ++i) digest = (digest ^ bytes[i]) * 1099511628211u;
    std::printf("%s %s %016" PRIx64 "\n", isa, verb, digest);
}

void must(const char* refusal) {
    if (!refusal) return;
    std::fprintf(stderr, "refused: %s\n", refusal);
    std::exit(1);
}

int round_up(int count) { return (count + 15) / 16 * 16; }

struct Codes {
    std::vector<int8_t> codes;
    std::vector<float> scale;
    std::vector<int32_t> sums;
    bn_quantized native;

    Codes(int tokens, int width)
        : codes(size_t(tokens * round_up(width))), scale(size_t(tokens)), sums(size_t(tokens)),
          native{codes.data(), scale.data(), sums.data(), tokens, width} {}
};

void linear_verbs(bn_context* context, const char* isa, int rows, int width, int tokens) {
    std::vector<uint8_t> planes(size_t(rows / 4 * width)), blocks(size_t(round_up(rows) * round_up(width) / 4));
    for (uint8_t& byte : planes) {
        byte = uint8_t(random_word() >> 8);
        byte = uint8_t(byte & ~(byte & byte >> 1 & 0x55));  // no code 3
    }
    const auto row_scale = floats(size_t(round_up(rows))), gain = floats(size_t(width));
    const bn_segment segment = {planes.data(), rows};
    bn_weights weights = {blocks.data(), row_scale.data(), rows, width};
    must(bn_pack(context, &segment, 1, &weights));
    Codes q(tokens, width), gated(tokens, width);
    std::vector<float> out(size_t(tokens * rows)), logits(size_t(tokens * rows));
    const auto x = floats(size_t(tokens * width)), both = floats(size_t(2 * tokens * width));
    must(bn_norm_quantize(context, x.data(), gain.data(), 1e-5f, &q.native));
    must(bn_linear(context, &q.native, &weights, nullptr, out.data()));
    must(bn_gate_norm_quantize(context, both.data(), gain.data(), 1e-5f, BN_SILU, &gated.native));
    const auto table_values = floats(size_t(rows * width));
    std::vector<int8_t> table_blocks(size_t(round_up(rows) * width));
    std::vector<float> table_scale(size_t(round_up(rows)));
    std::vector<int32_t> table_sums(size_t(round_up(rows)));
    bn_table table = {table_blocks.data(), table_scale.data(), table_sums.data(), nullptr, nullptr, rows, width};
    must(bn_pack_table(context, table_values.data(), 0, &table));
    must(bn_head(context, x.data(), gain.data(), 1e-5f, &table, tokens, logits.data()));
    std::vector<float> logits_of_halves(logits.size()), best_logits(size_t(tokens * (rows / 64)));
    std::vector<int8_t> upper(size_t(round_up(rows) * ((width + 7) / 8) * 4));
    std::vector<uint8_t> lower(size_t(round_up(rows) * ((width + 127) / 128) * 64));
    std::vector<int64_t> best(best_logits.size());
    bn_table halves = {upper.data(), table_scale.data(), table_sums.data(), nullptr, lower.data(), rows, width};
    must(bn_pack_table(context, table_values.data(), 0, &halves));
    must(bn_head(context, x.data(), gain.data(), 1e-5f, &halves, tokens, logits_of_halves.data()));
    must(bn_head_topk(context, x.data(), gain.data(), 1e-5f, &halves, tokens, rows / 64, nullptr, 0, best.data(),
                      best_logits.data()));
    report(isa, "norm_quantize", q.codes);
    report(isa, "linear", out);
    report(isa, "gate_norm_quantize", gated.codes);
    report(isa, "head", logits);
    report(isa, "head_of_halves", logits_of_halves);
    report(isa, "head_topk", best_logits);
}

void attention_verbs(bn_context* context, const char* isa, int is_int8) {
    constexpr int kTokens = 11, kHeads = 6, kKvHeads = 2, kDim = 20, kPositions = 16;
    bn_cache cache = {};
    cache.layers = 1, cache.blocks = 4, cache.block_tokens = 4, cache.kv_heads = kKvHeads, cache.head_dim = kDim;
    cache.is_int8 = is_int8;
    bn_cache_shape(&cache);
    std::vector<uint8_t> pages(cache.head_bytes * kKvHeads * 4);
    cache.base = pages.data();
    const auto cos = floats(kPositions * kDim / 2), sin = floats(kPositions * kDim / 2);
    const auto qkv = floats(kTokens * (kHeads + 2 * kKvHeads) * kDim);
    const bn_rope rope = {cos.data(), sin.data(), kPositions};
    const int64_t positions[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1}, slots[] = {4, 5, 6, 7, 0, 1, 2, 3, 12, 8, 9};
    const int32_t tables[] = {1, 0, 3, 2, 0, 0}, lengths[] = {9, 2}, starts[] = {0, 9, 11};
    const bn_batch batch = {nullptr, positions, slots, tables, lengths, starts, nullptr, kTokens, 2, 3, 0};
    std::vector<float> q(kTokens * kHeads * kDim), out(kTokens * kHeads * kDim);
    must(bn_rope_write(context, qkv.data(), kHeads, &rope, &cache, 0, &batch, q.data()));
    must(bn_attention(context, q.data(), kHeads, &cache, 0, &batch, out.data()));
    report(isa, is_int8 ? "cache_int8" : "cache_bf16", pages);
    report(isa, is_int8 ? "attention_int8" : "attention_bf16", out);
}

}  // namespace

int main() {
    for (const char* isa : {"avx512_vnni", "avx2_vnni", "avx2", "neon_dot", "portable"}) {
        bn_context* context = bn_open(isa, 2);
        if (!context) continue;
        random_state = 88172645463325252u;
        for (int tokens : {1, 2, 3, 7, 17}) linear_verbs(context, isa, 36, 548, tokens);
        linear_verbs(context, isa, 132, 20, 9);
        attention_verbs(context, isa, 0);
        attention_verbs(context, isa, 1);
        bn_close(context);
    }
}
