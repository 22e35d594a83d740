#include <algorithm>
#include <cstdio>
#include <cstring>

#include "carver.h"
#include "context.h"

namespace bitnet {
namespace {

int32_t groups_of(int32_t rows) { return (rows + 15) / 16; }

// body(first, last) over 0..count in pieces of a multiple of `unit`, each an eighth of a thread's share of what is left:
// large ones first, so that claiming costs nothing, small ones last, so that the threads end together and none waits
// long for one that the system took away. (Equal pieces: 27 of them on two threads lose 4 % by their number alone.)
template <class Body>
void in_pieces(bn_context& c, int count, int unit, const Body& body) {
    const int threads = c.pool.threads();
    if (threads == 1) return body(0, count);
    std::vector<int32_t>& ends = c.piece_ends;
    ends.assign(1, 0);
    for (int left = (count + unit - 1) / unit; left > 0;) {
        const int piece = (left + 8 * threads - 1) / (8 * threads);
        left -= piece;
        ends.push_back(std::min(count, ends.back() + piece * unit));
    }
    c.pool.run(int(ends.size()) - 1, [&](int item, int) { body(ends[size_t(item)], ends[size_t(item) + 1]); });
}

// Tokens of a pointwise verb go to the pool only when there is enough in them to pay for waking it.
constexpr int64_t kPointwiseFloats = 8192;

template <class Body>
void over_tokens(Pool& pool, int tokens, int64_t width, const Body& body) {
    if (tokens * width >= kPointwiseFloats) return pool.run(tokens, body);
    for (int token = 0; token < tokens; ++token) body(token, 0);
}

// A part of `stride` floats for each worker.
float* worker_floats(bn_context& c, size_t stride) {
    return reinterpret_cast<float*>(c.worker_scratch.reserve(sizeof(float) * stride * size_t(c.pool.threads())));
}

}  // namespace

size_t code_stride(int32_t width) { return size_t(groups_of(width)) * 16; }

int32_t attention_queries(int32_t heads_per_group) { return std::max(1, kAttentionRows / heads_per_group); }

size_t attention_scratch(const bn_cache& cache, int32_t heads_per_group) {
    const size_t rows = size_t(attention_queries(heads_per_group)) * size_t(heads_per_group);
    const size_t pointers = sizeof(void*) / sizeof(float);
    return (rows * (size_t(cache.token_lanes + cache.value_lanes) + 4 + pointers) + 15) / 16 * 16;
}

namespace {

// The codes of one row of a table, in either of its layouts.
class CodesOfRow {
  public:
    CodesOfRow(const bn_table& table, int64_t id) {
        const int32_t block_width = table.low ? 8 : 4;
        const size_t group_bytes = size_t((table.width + block_width - 1) / block_width) * 64;
        from_ = table.blocks + size_t(id / 16) * group_bytes + size_t(id % 16) * 4;
        if (table.low) low_ = table.low + size_t(id) * low_stride(table.width);
    }
    int32_t operator[](int32_t k) const {
        if (!low_) return from_[k / 4 * 64 + k % 4];
        const int shift = k % 8 / 4 * 4;
        return 16 * (uint8_t(from_[k / 8 * 64 + k % 4]) >> shift & 15) + (low_[k / 8 * 4 + k % 4] >> shift & 15) - 128;
    }

  private:
    const int8_t* from_;
    const uint8_t* low_ = nullptr;
};

}  // namespace

size_t low_stride(int32_t width) { return size_t((width + 127) / 128) * 64; }

void embed(bn_context& c, const bn_table& table, const int64_t* ids, int32_t count, float* out) {
    over_tokens(c.pool, count, table.width, [&](int token, int) {
        const int64_t id = ids[token];
        const CodesOfRow codes(table, id);
        const uint8_t* finer = table.refinement + size_t(id) * size_t(table.width / 2);
        float* to = out + size_t(token) * size_t(table.width);
        for (int k = 0; k < table.width; ++k) {
            const float sixteenth = float(finer[k / 2] >> (4 * (k % 2)) & 15) * 0.0625f - 0.46875f;
            to[k] = (float(codes[k]) + sixteenth) * table.row_scale[id];
        }
    });
}

void norm_quantize(bn_context& c, const float* x, const float* gain, float eps, const bn_quantized& out) {
    over_tokens(c.pool, out.tokens, out.width,
                [&](int token, int) { c.kernels->norm_quantize(x, gain, eps, out, token); });
}

void gate_norm_quantize(bn_context& c, const float* gate_up, const float* gain, float eps, int32_t act,
                        const bn_quantized& out) {
    const size_t stride = code_stride(out.width);
    float* scratch = worker_floats(c, stride);
    over_tokens(c.pool, out.tokens, out.width, [&](int token, int worker) {
        c.kernels->gate_norm_quantize(gate_up, gain, eps, act, scratch + size_t(worker) * stride, out, token);
    });
}

namespace {

// Tokens from `first` on.
void narrow_linear(bn_context& c, const bn_quantized& q, const bn_weights& w, const float* residual, float* out,
                   int first) {
    const size_t outputs = size_t(first) * size_t(w.rows), codes = size_t(first) * code_stride(q.width);
    const bn_quantized part{q.codes + codes, q.scale + first, q.sums + first, q.tokens - first, q.width};
    const float* part_residual = residual ? residual + outputs : nullptr;
    in_pieces(c, groups_of(w.rows), part.tokens == 1 ? c.kernels->row_groups : c.kernels->linear_groups,
              [&](int begin, int end) { c.kernels->linear(part, w, part_residual, out + outputs, begin, end); });
}

// How a wide linear is cut into items: tiles of tokens times chunks of groups.
struct WideCut {
    int tokens;  // all that are wide; 0: none
    int tiles, chunks;
};

WideCut cut_wide(const WideKernels& wide, int threads, int tokens, int groups) {
    WideCut cut{};
    if (!wide.tokens) return cut;
    cut.tiles = tokens / wide.tokens + (tokens % wide.tokens >= wide.least_tokens);
    cut.chunks = (groups + wide.most_groups - 1) / wide.most_groups;
    while (cut.tiles * cut.chunks % threads && cut.tiles * cut.chunks < 8 * threads) ++cut.chunks;
    if (groups / cut.chunks >= wide.least_groups) cut.tokens = std::min(tokens, cut.tiles * wide.tokens);
    return cut;
}

// Tokens from `first` on, as many as there are tiles for; returns how many.
int wide_linear(bn_context& c, const WideKernels& wide, const bn_quantized& q, const bn_weights& w,
                const float* residual, float* out, int first) {
    const int groups = groups_of(w.rows);
    const WideCut cut = cut_wide(wide, c.pool.threads(), q.tokens - first, groups);
    if (!cut.tokens) return 0;
    const size_t stride = wide.scratch(w, (groups + cut.chunks - 1) / cut.chunks);
    uint8_t* scratch = c.wide_scratch.reserve(stride * size_t(c.pool.threads()));
    c.pool.run(cut.tiles * cut.chunks, [&](int item, int worker) {  // a chunk meets all tiles before the next one comes
        const int token = item % cut.tiles * wide.tokens, chunk = item / cut.tiles;
        const int begin = groups * chunk / cut.chunks, end = groups * (chunk + 1) / cut.chunks;
        wide.linear(q, w, residual, out, first + token, std::min(wide.tokens, cut.tokens - token), begin, end - begin,
                    scratch + stride * size_t(worker));
    });
    return cut.tokens;
}

}  // namespace

void linear(bn_context& c, const bn_quantized& q, const bn_weights& w, const float* residual, float* out) {
    int done = 0;
    for (const WideKernels& wide : c.kernels->wide) done += wide_linear(c, wide, q, w, residual, out, done);
    if (done < q.tokens) narrow_linear(c, q, w, residual, out, done);
}

void rope_write(bn_context& c, const float* qkv, int32_t heads, const bn_rope& rope, const bn_cache& cache,
                int32_t layer, const bn_batch& batch, float* q_out) {
    const size_t half = size_t(cache.head_dim / 2), width = size_t(heads + 2 * cache.kv_heads) * 2 * half;
    const size_t stride = 4 * half + 16;
    float* scratch = worker_floats(c, stride);
    over_tokens(c.pool, batch.tokens, int64_t(width), [&](int token, int worker) {
        const size_t angle = size_t(batch.positions[token]) * half;
        c.kernels->rope_write(qkv + size_t(token) * width, rope.cos + angle, rope.sin + angle, heads, cache, layer,
                              batch.slots[token], scratch + size_t(worker) * stride,
                              q_out + size_t(token) * size_t(heads) * 2 * half);
    });
}

void attention(bn_context& c, const float* q, int32_t heads, const bn_cache& cache, int32_t layer,
               const bn_batch& batch, float* out) {
    const int32_t group = heads / cache.kv_heads, queries = attention_queries(group);
    const size_t stride = attention_scratch(cache, group), width = size_t(heads) * size_t(cache.head_dim);
    float* scratch = worker_floats(c, stride);
    const auto chunks_of = [&](int b) { return (batch.starts[b + 1] - batch.starts[b] + queries - 1) / queries; };
    int chunks = 0;
    for (int b = 0; b < batch.requests; ++b) chunks += chunks_of(b);
    // Few parts do not divide evenly among the threads: then the heads of a key-value head are two parts.
    const bool halves = group % 2 == 0 && c.pool.threads() > 1 && chunks * cache.kv_heads < 8 * c.pool.threads();
    const int32_t part_heads = halves ? group / 2 : group, parts_per_chunk = heads / part_heads;
    // Parts are numbered request by request; a part finds its request by walking the starts, B steps at most.
    c.pool.run(chunks * parts_per_chunk, [&](int item, int worker) {
        int b = 0, chunk = item / parts_per_chunk;
        for (; chunk >= chunks_of(b); ++b) chunk -= chunks_of(b);
        const int32_t first = batch.starts[b] + chunk * queries, end = batch.starts[b + 1];
        AttentionPart part;
        part.q = q + size_t(first) * width;
        part.out = out + size_t(first) * width;
        part.block_ids = batch.block_tables + size_t(b) * size_t(batch.max_blocks);
        part.first_position = int64_t(batch.lengths[b]) - end + first;
        part.queries = std::min(queries, end - first);
        part.heads = heads, part.layer = layer, part.group = part_heads;
        part.first_head = item % parts_per_chunk * part_heads, part.kv_head = part.first_head / group;
        c.kernels->attend(part, cache, scratch + size_t(worker) * stride);
    });
}

bn_quantized quantize_for_head(bn_context& c, const float* x, const float* gain, float eps, int32_t width,
                               int32_t rows) {
    const auto carve = [&](Carver& carver) {
        const size_t tokens = size_t(rows);
        return bn_quantized{carver.take<int8_t>(tokens * code_stride(width)), carver.take<float>(tokens),
                            carver.take<int32_t>(tokens), rows, width};
    };
    Carver measure(nullptr);
    carve(measure);
    Carver carver(c.step_scratch.reserve(measure.used()));
    const bn_quantized q = carve(carver);
    norm_quantize(c, x, gain, eps, q);
    return q;
}

void screen_sums(bn_context& c, const bn_quantized& q, const bn_table& table, int32_t* sums, size_t stride) {
    in_pieces(c, groups_of(table.rows), q.tokens == 1 ? c.kernels->row_groups : c.kernels->linear_groups,
              [&](int first, int last) { c.kernels->screen(q, table, sums, stride, first, last); });
}

void head_of(bn_context& c, const bn_quantized& q, const bn_table& table, float* logits) {
    if (table.low) return head_of_halves(c, q, table, logits);
    in_pieces(c, groups_of(table.rows), c.kernels->head_groups,
              [&](int first, int last) {
                  const size_t group_bytes = size_t((table.width + 3) / 4) * 64;
                  c.kernels->head(q, table, table.blocks + size_t(first) * group_bytes, logits, first, last);
              });
}

void head(bn_context& c, const float* x, const float* gain, float eps, const bn_table& table, int32_t rows,
          float* logits) {
    if (rows > 0) head_of(c, quantize_for_head(c, x, gain, eps, table.width, rows), table, logits);
}

const char* refuse_ids(const int64_t* ids, int32_t count, int32_t limit, int32_t least, const char* what) {
    static thread_local char message[96];
    for (int32_t i = 0; i < count; ++i) {
        if (ids[i] >= least && ids[i] < limit) continue;
        std::snprintf(message, sizeof message, "%s %lld at %d is not in %d..%d", what, (long long)ids[i], i, least,
                      limit - 1);
        return message;
    }
    return nullptr;
}

namespace {

const char* refuse_layer(const bn_cache& cache, int32_t layer) {
    return layer >= 0 && layer < cache.layers ? nullptr : "the layer is not in the cache";
}

const char* refuse_request(const bn_batch& batch, const bn_cache& cache, int32_t b) {
    const int32_t count = batch.starts[b + 1] - batch.starts[b], length = batch.lengths[b];
    if (count < 0 || length < count) return "starts must not fall, and lengths must cover the queries";
    const int64_t used = (int64_t(length) + cache.block_tokens - 1) / cache.block_tokens;
    if (used > batch.max_blocks) return "a length is beyond its block table";
    const int32_t* ids = batch.block_tables + size_t(b) * size_t(batch.max_blocks);
    for (int64_t i = 0; i < used; ++i)
        if (ids[i] < 0 || ids[i] >= cache.blocks) return "a block id is not in the cache";
    return nullptr;
}

}  // namespace

const char* refuse_writes(const bn_batch& batch, const bn_cache& cache, const bn_rope& rope, int32_t layer) {
    const int64_t slots = int64_t(cache.blocks) * cache.block_tokens;
    if (slots > INT32_MAX) return "the cache has more than 2^31 slots";
    if (const char* refusal = refuse_layer(cache, layer)) return refusal;
    if (const char* refusal = refuse_ids(batch.positions, batch.tokens, rope.positions, 0, "position")) return refusal;
    return refuse_ids(batch.slots, batch.tokens, int32_t(slots), 0, "slot");
}

const char* refuse_reads(const bn_batch& batch, const bn_cache& cache, int32_t layer) {
    if (const char* refusal = refuse_layer(cache, layer)) return refusal;
    if (batch.starts[0] != 0 || batch.starts[batch.requests] != batch.tokens) return "starts must run from 0 to T";
    for (int32_t b = 0; b < batch.requests; ++b)
        if (const char* refusal = refuse_request(batch, cache, b)) return refusal;
    return nullptr;
}

}  // namespace bitnet
