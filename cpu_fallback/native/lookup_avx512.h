// The ternary linear for many tokens: half of the rows by dot products, half by table lookups, both at the same time.
//
// vpdpbusd is bound by two of the four vector units, 64 products a cycle. The way around it: the four ternary weights of
// one byte have 81 values, so the 81 sums that they can make of four activations are tabulated once for a tile of tokens,
// and every row then adds a table entry (32 tokens in 16 bits) instead of multiplying. That is bound by loads, so the two
// share a core well: on Zen 4 (2026-11-26) a loop of 8 dot products takes 8.0 cycles, one with 4 lookups 6.5, one with
// both 10.8, 95 products a cycle. The tabulation is the "method of four Russians" (Arlazarov et al., 1970).
//
// Exact: an entry is at most 4 * 127, 64 of them fit 16 bits, and then they go to 32-bit sums.
#pragma once

#include "carver.h"
#include "linear.h"

namespace {

constexpr int kWideTokens = 32;                 // of a tile: 16 bits each in one register
constexpr int kEntries = 81, kEntryBytes = 64;  // of a table; four tables, one for each byte of a row's word
constexpr int kTableBytes = kEntries * kEntryBytes;
constexpr int kSpanBlocks = 16;                 // blocks of 16 k whose sums fit 16 bits
constexpr int kDotGroups = 2, kDotTokens = 8;   // in 16 accumulators
constexpr int kRowsABlock = 4 * kDotGroups;     // looked up while a block of kDotGroups x kDotTokens is multiplied
constexpr int kWideGroups = 2 * kDotGroups;     // groups of rows come in multiples of it

using Zmm = __m512i;

// Rows become columns: 16 registers of 16 words.
BN_INLINE void transpose(Zmm (&r)[16]) {
    Zmm a[16];
    unroll<8>([&](auto i) BN_LAMBDA {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    });
    unroll<4>([&](auto i) BN_LAMBDA {
        unroll<2>([&](auto j) BN_LAMBDA {
            r[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        });
    });
    unroll<4>([&](auto i) BN_LAMBDA {
        unroll<2>([&](auto j) BN_LAMBDA {
            a[8 * j + i] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + 4 + i], 0x88);
            a[8 * j + 4 + i] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + 4 + i], 0xdd);
        });
    });
    unroll<8>([&](auto i) BN_LAMBDA {
        r[i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0xdd);
    });
}

// Base-4 digits 0..2 of each byte, lowest first, as a number in base 3: 0..80.
BN_INLINE Zmm base_three(Zmm codes) {
    const Zmm low = _mm512_and_si512(codes, _mm512_set1_epi8(0x33));
    const Zmm high = _mm512_and_si512(_mm512_srli_epi16(codes, 2), _mm512_set1_epi8(0x33));
    const Zmm pairs = _mm512_add_epi8(low, _mm512_add_epi8(high, _mm512_add_epi8(high, high)));  // 0..8 in each half
    const Zmm first = _mm512_and_si512(pairs, _mm512_set1_epi8(15));
    const Zmm second = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), _mm512_set1_epi8(15));
    return _mm512_add_epi8(first, _mm512_add_epi8(second, _mm512_slli_epi16(second, 3)));
}

// A tile of tokens and some groups of rows: the first half of these is looked up, the second multiplied.
class WideTile {
  public:
    // The tile's tokens are all of q.
    WideTile(const bn_quantized& q, const bn_weights& w, int first_group, int groups)
        : q_(q), w_(w), blocks_((w.width + 15) / 16), first_group_(first_group), half_(groups / 2),
          rows_(size_t(half_) * 16) {}

    void carve(Carver& carver) {
        tables_ = carver.take<uint8_t>(4 * kTableBytes);
        words_ = carver.take<int32_t>(size_t(blocks_) * 4 * kWideTokens);
        indices_ = carver.take<uint32_t>(rows_ * kSpanBlocks);
        narrow_ = carver.take<int16_t>(rows_ * kWideTokens);
        sums_ = carver.take<int32_t>(rows_ * kWideTokens);
        zeros_ = carver.take<int16_t>(kRowsABlock * kWideTokens);
    }

    // residual (or nullptr) and out: of the tile's first token.
    void run(const float* residual, float* out) {
        residual_ = residual, out_ = out;
        __builtin_memset(zeros_, 0, kRowsABlock * kWideTokens * sizeof(int16_t));
        lay_out_words();
        next_block();
        for (int g = 0; g < half_; g += kDotGroups)
            for (int token = 0; token < kWideTokens; token += kDotTokens) dot_tile(first_group_ + half_ + g, token);
        widen();
        for (int g = 0; g < half_; ++g)
            for (int token = 0; token < q_.tokens; token += 16) finish(g, token);
    }

  private:
    const uint8_t* weights(int group) const { return w_.blocks + size_t(group) * size_t(blocks_) * kBlockBytes; }

    // words_[k / 4][token]: four activations each, zeros beside the tokens that there are.
    void lay_out_words() {
        const size_t stride = size_t(blocks_) * 4;
        for (int token = 0; token < kWideTokens; token += 16) {
            for (int at = 0; at < blocks_ * 4; at += 16) {
                const __mmask16 within = __mmask16(blocks_ * 4 - at < 16 ? (1u << (blocks_ * 4 - at)) - 1 : 0xffff);
                Zmm words[16];
                for (int t = 0; t < 16; ++t) {
                    const int8_t* codes = q_.codes + (size_t(token + t) * stride + size_t(at)) * 4;
                    words[t] = token + t < q_.tokens ? _mm512_maskz_loadu_epi32(within, codes) : Zmm{};
                }
                transpose(words);
                for (int i = 0; i < least(16, blocks_ * 4 - at); ++i)
                    _mm512_store_si512(words_ + size_t(at + i) * kWideTokens + token, words[i]);
            }
        }
    }

    // Byte j of each token's word, in 16 bits.
    static Zmm activations(const int32_t* words, int j) {
        const __m128i up = _mm_cvtsi32_si128(24 - 8 * j);
        const auto part = [&](const int32_t* from) {
            return _mm512_cvtepi32_epi16(_mm512_srai_epi32(_mm512_sll_epi32(_mm512_load_si512(from), up), 24));
        };
        return _mm512_inserti64x4(_mm512_castsi256_si512(part(words)), part(words + 16), 1);
    }

    // All sums of four activations with weights of -1, 0 and 1, the first weight changing fastest.
    static void tabulate(Zmm* entry, const Zmm (&x)[4]) {
        Zmm d = _mm512_sub_epi16(Zmm{}, _mm512_add_epi16(_mm512_add_epi16(x[0], x[1]), _mm512_add_epi16(x[2], x[3])));
        for (int i = 0; i < 3; ++i, d = _mm512_add_epi16(d, x[3])) {
            Zmm c = d;
            for (int j = 0; j < 3; ++j, c = _mm512_add_epi16(c, x[2])) {
                Zmm b = c;
                for (int k = 0; k < 3; ++k, b = _mm512_add_epi16(b, x[1])) {
                    _mm512_store_si512(entry++, b);
                    _mm512_store_si512(entry++, _mm512_add_epi16(b, x[0]));
                    _mm512_store_si512(entry++, _mm512_add_epi16(_mm512_add_epi16(b, x[0]), x[0]));
                }
            }
        }
    }

    // The rows' indices in the blocks of a span: a row's weights come a kilobyte at a time.
    void index_span() {
        const int count = least(kSpanBlocks, blocks_ - block_);
        for (int g = 0; g < half_; ++g) {
            const uint8_t* from = weights(first_group_ + g) + size_t(block_) * kBlockBytes;
            for (int b = 0; b < count; ++b)
                _mm512_store_si512(indices_ + size_t(b) * rows_ + size_t(g) * 16,
                                   base_three(_mm512_loadu_si512(from + size_t(b) * kBlockBytes)));
        }
    }

    // A span is over, and its 16-bit sums go to the 32-bit ones.
    void widen() {
        const bool begins = block_ <= kSpanBlocks;
        for (size_t at = 0; at < rows_ * kWideTokens; at += 16) {
            Zmm sum = _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(narrow_ + at)));
            if (!begins) sum = _mm512_add_epi32(sum, _mm512_load_si512(sums_ + at));
            _mm512_store_si512(sums_ + at, sum);
        }
    }

    // Every row has looked up the present block: tables and indices of the next one, if there is one.
    __attribute__((noinline)) void next_block() {
        if (++block_ >= blocks_) return;
        if (block_ % kSpanBlocks == 0) {
            if (block_ > 0) widen();
            index_span();
        }
        for (int j = 0; j < 4; ++j) {
            Zmm x[4];
            for (int pair = 0; pair < 4; ++pair)
                x[pair] = activations(words_ + size_t(4 * block_ + pair) * kWideTokens, j);
            tabulate(reinterpret_cast<Zmm*>(tables_ + j * kTableBytes), x);
        }
        next_index_ = indices_ + size_t(block_ % kSpanBlocks) * rows_;
        next_sums_ = narrow_;
    }

    // The sums of one row and its four entries of the present block: `index` holds four numbers of 0..80.
    static BN_INLINE void look_up(const uint8_t* tables, uint32_t index, const int16_t* before, int16_t* sums) {
        const uint64_t at = _pdep_u64(index, 0x3fc0'3fc0'3fc0'3fc0);  // each times kEntryBytes
        const auto entry = [&](int j) BN_LAMBDA {
            return _mm512_load_si512(tables + j * kTableBytes + (at >> 16 * j & 0xffff));
        };
        const Zmm left = _mm512_add_epi16(entry(0), entry(1)), right = _mm512_add_epi16(entry(2), entry(3));
        _mm512_store_si512(sums, _mm512_add_epi16(_mm512_add_epi16(left, right), _mm512_load_si512(before)));
    }

    // kDotGroups groups times kDotTokens tokens, and kRowsABlock rows looked up beside each of its blocks: over all its
    // tiles, the second half of the rows takes as many steps as the first half has rows to look up.
    void dot_tile(int group, int token) {
        // Copies: the compiler would read members again after each store, and loads are what is short here.
        const uint8_t* w = weights(group);
        const size_t group_bytes = size_t(blocks_) * kBlockBytes;
        // While these groups meet kWideTokens / kDotTokens times as many tokens, the next ones come into the second cache.
        constexpr size_t kStep = kDotGroups * kBlockBytes * kDotTokens / kWideTokens;
        const uint8_t* next = w + kDotGroups * group_bytes + size_t(token / kDotTokens * blocks_) * kStep;
        const int32_t* words = words_ + token;
        const uint8_t* const tables = tables_;
        const int blocks = blocks_;
        Lookups at = lookups();
        Int sums[kDotTokens][kDotGroups];
        unroll<kDotTokens>([&](auto t) BN_LAMBDA { unroll<kDotGroups>([&](auto g) BN_LAMBDA { sums[t][g] = Int{}; }); });
        for (int b = 0; b < blocks; ++b) {
            Bytes packed[kDotGroups];
            unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                packed[g] = load_part<Bytes>(w + g * group_bytes + size_t(b) * kBlockBytes);
            });
            unroll<4>([&](auto pair) BN_LAMBDA {
                Bytes codes[kDotGroups];
                unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                    constexpr int kRow = decltype(pair)::value * kDotGroups + decltype(g)::value;
                    codes[g] = bit_pair<decltype(pair)::value>(packed[g]);
                    look_up(tables, at.index[kRow], at.before + kRow * kWideTokens, at.sums + kRow * kWideTokens);
                });
                unroll<kDotTokens>([&](auto t) BN_LAMBDA {
                    const Bytes word = bits<Bytes>(words[pair * kWideTokens + t] - Int{});
                    unroll<kDotGroups>([&](auto g) BN_LAMBDA { sums[t][g] = dpbusd(sums[t][g], codes[g], word); });
                });
            });
            __builtin_prefetch(next + size_t(b) * kStep, 0, 2);
            words += 4 * kWideTokens, at.index += kRowsABlock;
            at.sums += kRowsABlock * kWideTokens, at.before += at.before_step;
            if (__builtin_expect(at.sums == at.end, 0)) {
                next_block();
                at = lookups();
            }
        }
        next_index_ = at.index, next_sums_ = at.sums;
        unroll<kDotTokens>([&](auto t) BN_LAMBDA {
            unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                if (token + t < q_.tokens) write(group + g, token + t, sums[t][g] - q_.sums[token + t]);
            });
        });
    }

    // The next row to look up. The first block of a span adds to zeros, the others to what their predecessors left.
    struct Lookups {
        const uint32_t* index;
        int16_t* sums;
        const int16_t *before, *end;
        size_t before_step;
    };
    Lookups lookups() const {
        const bool begins = block_ % kSpanBlocks == 0;
        return {next_index_, next_sums_, begins ? zeros_ : next_sums_, narrow_ + rows_ * kWideTokens,
                begins ? 0 : size_t(kRowsABlock * kWideTokens)};
    }

    // Sixteen looked-up rows of up to sixteen tokens.
    void finish(int g, int token) {
        Zmm sums[16];
        for (int row = 0; row < 16; ++row)
            sums[row] = _mm512_load_si512(sums_ + (size_t(g) * 16 + size_t(row)) * kWideTokens + token);
        transpose(sums);
        for (int t = 0; t < least(16, q_.tokens - token); ++t) write(first_group_ + g, token + t, Int(sums[t]));
    }

    BN_INLINE void write(int group, int token, Int sum) {
        I32x16 wide;
        wide.part[0] = sum;
        const int first_row = group * 16;
        const size_t at = size_t(token) * size_t(w_.rows) + size_t(first_row);
        rescale(wide, q_.scale[token], w_.row_scale + first_row, residual_ ? residual_ + at : nullptr,
                out_ + at, least(16, w_.rows - first_row));
    }

    const bn_quantized q_;
    const bn_weights& w_;
    const int blocks_, first_group_, half_;
    const size_t rows_;  // that are looked up
    uint8_t* tables_;    // [4][kEntries], of the present block
    int32_t* words_;     // [blocks * 4][kWideTokens]
    uint32_t* indices_;  // [kSpanBlocks][rows]: four numbers of 0..80
    int16_t* narrow_;    // [rows][kWideTokens], of the present span
    int32_t* sums_;      // the same, of the spans before it
    int16_t* zeros_;     // [kRowsABlock][kWideTokens]
    const float* residual_ = nullptr;
    float* out_ = nullptr;
    int block_ = -1;  // that is looked up, and from which row on:
    const uint32_t* next_index_ = nullptr;
    int16_t* next_sums_ = nullptr;
};

void linear_wide(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int32_t first_token,
                 int32_t tokens, int32_t first_group, int32_t groups, uint8_t* scratch) {
    const size_t codes = size_t(first_token) * size_t((w.width + 15) / 16) * 16;
    const size_t outputs = size_t(first_token) * size_t(w.rows);
    WideTile tile({q.codes + codes, q.scale + first_token, q.sums + first_token, tokens, q.width}, w, first_group, groups);
    Carver carver(scratch);
    tile.carve(carver);
    tile.run(residual ? residual + outputs : nullptr, out + outputs);
}

size_t wide_scratch(const bn_weights& w, int32_t groups) {
    Carver measure(nullptr);
    WideTile({}, w, 0, groups).carve(measure);
    return measure.used();
}

}  // namespace
