// From the checkpoint's planes to blocks of 16 rows x 16 k, and from float rows to an int8 table.
#include <algorithm>
#include <cstring>

#include "context.h"

namespace bitnet {
namespace {

constexpr int kRows = 16;

// Loading is not worth kernels of its own: the compiler makes a second, wider form of these loops, taken where it runs.
#if defined(__x86_64__) && defined(__GLIBC__)
#define BN_WIDER __attribute__((target_clones("avx2", "default")))
#else
#define BN_WIDER
#endif

// One stored row of a fused linear: where its bytes lie and which bit pair of them is its own.
struct Source {
    const uint8_t* bytes = nullptr;  // nullptr: padding
    int shift = 0;
};

Source source_of(const bn_segment* segments, int32_t num_segments, int32_t width, int32_t row) {
    for (int32_t i = 0; i < num_segments; ++i) {
        const int32_t quarter = segments[i].rows / 4;
        if (row < segments[i].rows)
            return {segments[i].planes + size_t(row % quarter) * size_t(width), row / quarter * 2};
        row -= segments[i].rows;
    }
    return {};
}

// Four consecutive codes of a row as bytes of a word; the neutral code beyond the row's end.
uint32_t four_codes(const Source& source, int32_t k, int32_t width) {
    constexpr uint32_t kNeutral = 0x01010101;
    if (!source.bytes || k >= width) return kNeutral;
    uint32_t word;  // width is a multiple of 4
    std::memcpy(&word, source.bytes + k, sizeof word);
    return (word >> source.shift) & 0x03030303;
}

BN_WIDER void pack_group(const bn_segment* segments, int32_t num_segments, const bn_weights& out, int32_t group) {
    const int32_t blocks = (out.width + 15) / 16;
    uint8_t* to = out.blocks + size_t(group) * size_t(blocks) * 64;
    for (int r = 0; r < kRows; ++r) {
        const Source source = source_of(segments, num_segments, out.width, group * kRows + r);
        for (int32_t b = 0; b < blocks; ++b) {
            uint32_t word = 0;
            for (int pair = 0; pair < 4; ++pair)
                word |= four_codes(source, b * 16 + 4 * pair, out.width) << (2 * pair);
            std::memcpy(to + size_t(b) * 64 + size_t(r) * 4, &word, sizeof word);
        }
    }
}

// Row `row` of a bf16 or f32 matrix as floats.
BN_WIDER void read_row(const void* from, bool is_bf16, int32_t row, int32_t width, float* values) {
    const size_t first = size_t(row) * size_t(width);
    if (!is_bf16) {
        std::memcpy(values, static_cast<const float*>(from) + first, sizeof(float) * size_t(width));
        return;
    }
    const uint16_t* halves = static_cast<const uint16_t*>(from) + first;
    for (int32_t k = 0; k < width; ++k) {
        const uint32_t word = uint32_t(halves[k]) << 16;
        std::memcpy(values + k, &word, sizeof word);
    }
}

BN_WIDER float largest_magnitude(const float* values, int32_t width) {  // as integers, which compilers vectorise
    int32_t highest = 0;
    for (int32_t k = 0; k < width; ++k) {
        int32_t word;
        std::memcpy(&word, values + k, sizeof word);
        highest = std::max(highest, word & 0x7fffffff);
    }
    float top;
    std::memcpy(&top, &highest, sizeof top);
    return top;
}

// Half to even for |x| < 2^22, without a call: see nearest() in simd.h.
float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

int8_t* row_in_blocks(const bn_table& out, int32_t row, int32_t block_width) {
    const int32_t blocks = (out.width + block_width - 1) / block_width;
    return out.blocks + size_t(row / kRows) * size_t(blocks) * 64 + size_t(row % kRows) * 4;
}

void place_whole(const int8_t* codes, const bn_table& out, int32_t row) {
    int8_t* to = row_in_blocks(out, row, 4);
    for (int32_t k = 0; k < out.width; k += 4) std::memcpy(to + k / 4 * 64, codes + k, 4);
}

// codes are read to the next multiple of 8.
BN_WIDER void place_halves(const int8_t* codes, const bn_table& out, int32_t row) {
    int8_t* upper = row_in_blocks(out, row, 8);
    uint8_t* lower = out.low + size_t(row) * low_stride(out.width);
    for (int32_t k = 0; k < out.width; k += 8) {
        uint32_t first, second;
        std::memcpy(&first, codes + k, 4);
        std::memcpy(&second, codes + k + 4, 4);
        first ^= 0x80808080, second ^= 0x80808080;  // + 128
        const uint32_t high = (first >> 4 & 0x0f0f0f0f) | (second & 0xf0f0f0f0);
        const uint32_t low = (first & 0x0f0f0f0f) | (second << 4 & 0xf0f0f0f0);
        std::memcpy(upper + k / 8 * 64, &high, 4);
        std::memcpy(lower + k / 2, &low, 4);
    }
}

// The codes of a table's row follow the same definition as activations: clamp(rint(w * (127 / max |w|)), -127, 127),
// and `sixteenths` say where in its step a value lies: value / step - code is in -0.5..0.5.
// The head needs only the codes. A looked-up embedding enters the residual stream, where int8 alone took the logit
// error of a random model of 6 layers to 1.15 times that of a bf16 evaluation. rms(error) / std against float64: int8
// 0.052, with two more bits 0.044, with four 0.042, bf16 rows 0.038; transformers in bf16 0.045 (Zen 3, 2026-11).
BN_WIDER void pack_table_row(const float* __restrict values, const bn_table& out, int32_t row, int8_t* __restrict codes,
                    uint8_t* __restrict sixteenths) {
    const int32_t width = out.width;
    const float top = largest_magnitude(values, width);
    const float inverse = 127.0f / std::max(top, 1e-30f);  // finite for a row of zeros, whose scale is 0
    int32_t sum = 0;
    for (int32_t k = 0; k < width; ++k) {
        const float scaled = values[k] * inverse, code = std::min(127.0f, std::max(-127.0f, nearest(scaled)));
        codes[k] = int8_t(int32_t(code));
        sum += int32_t(code);
        sixteenths[k] = uint8_t(int32_t(std::min(15.0f, std::max(0.0f, (scaled - code + 0.5f) * 16.0f))));
    }
    out.row_scale[row] = top / 127.0f;
    out.row_sums[row] = sum;
    std::memset(codes + width, 0, size_t(-width) % 16);
    if (out.low)
        place_halves(codes, out, row);
    else
        place_whole(codes, out, row);
    if (!out.refinement) return;
    uint8_t* finer = out.refinement + size_t(row) * size_t(out.width / 2);
    for (int32_t k = 0; k < width; k += 2) finer[k / 2] = uint8_t(sixteenths[k] | sixteenths[k + 1] << 4);
}

}  // namespace

bool has_code_three(const bn_segment* segments, int32_t num_segments, int32_t width) {
    for (int32_t i = 0; i < num_segments; ++i) {
        const size_t count = size_t(segments[i].rows / 4) * size_t(width);
        uint8_t found = 0;
        for (size_t at = 0; at < count; ++at) {
            const uint8_t byte = segments[i].planes[at];
            found |= byte & uint8_t(byte >> 1) & 0x55;
        }
        if (found) return true;
    }
    return false;
}

void pack(bn_context& c, const bn_segment* segments, int32_t num_segments, const bn_weights& out) {
    c.pool.run((out.rows + kRows - 1) / kRows,
               [&](int group, int) { pack_group(segments, num_segments, out, group); });
}

void pack_table(bn_context& c, const void* weight, bool is_bf16, const bn_table& out) {
    const size_t stride = code_stride(out.width);  // of each part: values, codes, sixteenths
    uint8_t* scratch = c.worker_scratch.reserve((sizeof(float) + 2) * stride * size_t(c.pool.threads()));
    c.pool.run((out.rows + kRows - 1) / kRows, [&](int group, int worker) {
        uint8_t* own = scratch + (sizeof(float) + 2) * stride * size_t(worker);
        float* values = reinterpret_cast<float*>(own);
        int8_t* codes = reinterpret_cast<int8_t*>(own + sizeof(float) * stride);
        uint8_t* sixteenths = own + (sizeof(float) + 1) * stride;
        for (int32_t row = group * kRows; row < std::min(out.rows, (group + 1) * kRows); ++row) {
            read_row(weight, is_bf16, row, out.width, values);
            pack_table_row(values, out, row, codes, sixteenths);
        }
    });
}

}  // namespace bitnet
