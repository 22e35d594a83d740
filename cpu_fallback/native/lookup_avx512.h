// The ternary linear for many tokens: some rows by dot products, the others by table lookups, both at the same time.
//
// vpdpbusd is bound by two of the four vector units, 64 products a cycle. The way around it: the four ternary weights
// of one byte have 81 values, so the 81 sums that they can make of four activations are tabulated once for a tile of
// tokens, and every row then adds a table entry (16 bits a token) instead of multiplying. That is bound by loads and by
// finding the entry, so the two share a core well: on Zen 4 (2026-11-26) 16 dot products take 16 cycles, with 3 rows of
// 4 lookups for 16 tokens 16.4, with 2 rows for 32 tokens 17.6: 109 and 116 products a cycle. With 3 rows for 8 tokens
// it is 16.1 and 87: enough for the tables only where very many rows share them. The tabulation is the "method of four
// Russians" (Arlazarov et al., 1970).
//
// Exact: an entry is at most 4 * 127, 64 of them fit 16 bits, and then they go to 32-bit sums.
#pragma once

#include "carver.h"
#include "linear.h"
#include "registers_avx512.h"

namespace {

constexpr int kEntries = 81;                   // of a table; there are four, one for each byte of a row's word
constexpr int kSpanBlocks = 16;                // blocks of 16 k whose sums fit 16 bits
constexpr int kDotGroups = 2, kDotTokens = 8;  // in 16 accumulators

// Tokens at a time, and some groups of rows: the first of these are looked up, the others multiplied.
template <int Tokens>
class WideTile {
    using Entry = typename Lane<Tokens>::Entry;
    using Words = typename Lane<Tokens>::Words;

    static constexpr int kTableBytes = kEntries * int(sizeof(Entry));
    static constexpr int kRows = Tokens == 32 ? 2 : 3;  // looked up beside kDotGroups * kDotTokens dot products,
    static constexpr int kRowsABlock = 4 * kRows;       // and beside four times as many, a block of 16 k

  public:
    // Groups that are multiplied and looked up in as many steps: each kDotGroups meet the tokens in Tokens / kDotTokens
    // parts, a block in each with kRowsABlock rows looked up beside it.
    static constexpr int kDotUnit = 64 / Tokens;
    static constexpr int kLookupUnit = kDotUnit / kDotGroups * (Tokens / kDotTokens) * kRowsABlock / 16;
    static constexpr int kUnit = kDotUnit + kLookupUnit;

    // The tile's tokens are all of q, the groups as many of these as are whole units.
    WideTile(const bn_quantized& q, const bn_weights& w, int first_group, int groups)
        : q_(q), w_(w), blocks_((w.width + 15) / 16), first_group_(first_group),
          lookup_groups_(groups / kUnit * kLookupUnit), dot_groups_(groups / kUnit * kDotUnit),
          rows_(size_t(lookup_groups_) * 16) {}

    void carve(Carver& carver) {
        tables_ = carver.take<Entry>(4 * kEntries);
        words_ = carver.take<int32_t>(size_t(blocks_) * 4 * Tokens);
        indices_ = carver.take<uint32_t>(rows_ * kSpanBlocks);
        narrow_ = carver.take<Entry>(rows_);
        sums_ = carver.take<int32_t>(rows_ * Tokens);
        zeros_ = carver.take<Entry>(kRowsABlock);
    }

    // residual (or nullptr) and out: of the tile's first token.
    void run(const float* residual, float* out) {
        residual_ = residual, out_ = out;
        __builtin_memset(zeros_, 0, kRowsABlock * sizeof(Entry));
        lay_out_words();
        next_block();
        for (int g = 0; g < dot_groups_; g += kDotGroups)
            for (int token = 0; token < Tokens; token += kDotTokens) dot_tile(first_group_ + lookup_groups_ + g, token);
        widen();
        for (int g = 0; g < lookup_groups_; ++g)
            for (int token = 0; token < q_.tokens; token += 16) finish(g, token);
    }

  private:
    const uint8_t* weights(int group) const { return w_.blocks + size_t(group) * size_t(blocks_) * kBlockBytes; }

    // A register's lanes of tokens that the tile has: eight or sixteen.
    static BN_INLINE void store_lanes(int32_t* to, Zmm lanes) {
        if constexpr (Tokens < 16)
            _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(lanes));
        else
            _mm512_store_si512(to, lanes);
    }
    static BN_INLINE Zmm load_lanes(const int32_t* from) {
        if constexpr (Tokens < 16)
            return _mm512_zextsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
        else
            return _mm512_load_si512(from);
    }

    // words_[k / 4][token]: four activations each, zeros beside the tokens that there are.
    void lay_out_words() {
        const size_t stride = size_t(blocks_) * 4;
        for (int token = 0; token < Tokens; token += 16) {
            for (int at = 0; at < blocks_ * 4; at += 16) {
                const __mmask16 within = __mmask16(blocks_ * 4 - at < 16 ? (1u << (blocks_ * 4 - at)) - 1 : 0xffff);
                Zmm words[16];
                for (int t = 0; t < 16; ++t) {
                    const int8_t* codes = q_.codes + (size_t(token + t) * stride + size_t(at)) * 4;
                    words[t] = token + t < q_.tokens ? _mm512_maskz_loadu_epi32(within, codes) : Zmm{};
                }
                transpose(words);
                for (int i = 0; i < least(16, blocks_ * 4 - at); ++i)
                    store_lanes(words_ + size_t(at + i) * Tokens + token, words[i]);
            }
        }
    }

    // Byte j of each token's word, in 16 bits.
    static Entry activations(const int32_t* words, int j) {
        Words whole;
        __builtin_memcpy(&whole, words, sizeof whole);
        return Lane<Tokens>::narrow(whole << (24 - 8 * j) >> 24);
    }

    // All sums of four activations with weights of -1, 0 and 1, the first weight changing fastest.
    static void tabulate(Entry* entry, const Entry (&x)[4]) {
        Entry d = -(x[0] + x[1] + x[2] + x[3]);
        for (int i = 0; i < 3; ++i, d += x[3]) {
            Entry c = d;
            for (int j = 0; j < 3; ++j, c += x[2]) {
                Entry b = c;
                for (int k = 0; k < 3; ++k, b += x[1]) *entry++ = b, *entry++ = b + x[0], *entry++ = b + x[0] + x[0];
            }
        }
    }

    // The rows' indices in the blocks of a span: a row's weights come a kilobyte at a time.
    void index_span() {
        const int count = least(kSpanBlocks, blocks_ - block_);
        for (int g = 0; g < lookup_groups_; ++g) {
            const uint8_t* from = weights(first_group_ + g) + size_t(block_) * kBlockBytes;
            for (int b = 0; b < count; ++b)
                _mm512_store_si512(indices_ + size_t(b) * rows_ + size_t(g) * 16,
                                   base_three(_mm512_loadu_si512(from + size_t(b) * kBlockBytes)));
        }
    }

    // A span is over, and its 16-bit sums go to the 32-bit ones.
    void widen() {
        const bool begins = block_ <= kSpanBlocks;
        const auto* narrow = reinterpret_cast<const __m256i*>(narrow_);
        for (size_t at = 0; at < rows_ * Tokens; at += 16) {
            Zmm sum = _mm512_cvtepi16_epi32(_mm256_load_si256(narrow++));
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
            Entry x[4];
            for (int pair = 0; pair < 4; ++pair) x[pair] = activations(words_ + size_t(4 * block_ + pair) * Tokens, j);
            tabulate(tables_ + j * kEntries, x);
        }
        next_row_ = 0;
    }

    // The sums of one row and its four entries of the present block: `index` holds four numbers of 0..80.
    static BN_INLINE void look_up(const Entry* tables, uint32_t index, const Entry* before, Entry* sums) {
        const uint64_t at = _pdep_u64(index, 0x00ff'00ff'00ff'00ff * sizeof(Entry));  // each times the size of an entry
        const auto entry = [&](int j) BN_LAMBDA {
            const auto* table = reinterpret_cast<const char*>(tables + j * kEntries);
            return *reinterpret_cast<const Entry*>(table + (at >> 16 * j & 0xffff));
        };
        *sums = ((entry(0) + entry(1)) + (entry(2) + entry(3))) + *before;
    }

    // kDotGroups groups times kDotTokens tokens, and kRowsABlock rows looked up beside each of its blocks: over all its
    // tiles, the second half of the rows takes as many steps as the first half has rows to look up.
    void dot_tile(int group, int token) {
        // Copies: the compiler would read members again after each store, and loads are what is short here.
        const uint8_t* w = weights(group);
        const size_t group_bytes = size_t(blocks_) * kBlockBytes;
        // While these groups meet all parts of the tokens, the next ones come into the second cache.
        constexpr size_t kStep = kDotGroups * kBlockBytes * kDotTokens / Tokens;
        const uint8_t* next = w + kDotGroups * group_bytes + size_t(token / kDotTokens * blocks_) * kStep;
        const int32_t* words = words_ + token;
        const Entry* const tables = tables_;
        const int blocks = blocks_;
        Lookups at = lookups();
        Int sums[kDotTokens][kDotGroups];
        unroll<kDotTokens>([&](auto t) BN_LAMBDA {
            unroll<kDotGroups>([&](auto g) BN_LAMBDA { sums[t][g] = Int{}; });
        });
        for (int b = 0; b < blocks; ++b) {
            Bytes packed[kDotGroups];
            unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                packed[g] = load_part<Bytes>(w + g * group_bytes + size_t(b) * kBlockBytes);
            });
            unroll<4>([&](auto pair) BN_LAMBDA {
                Bytes codes[kDotGroups];
                unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                    codes[g] = bit_pair<decltype(pair)::value>(packed[g]);
                });
                unroll<kRows>([&](auto r) BN_LAMBDA {
                    constexpr int kRow = decltype(pair)::value * kRows + decltype(r)::value;
                    look_up(tables, at.index[kRow], at.before + kRow, at.sums + kRow);
                });
                unroll<kDotTokens>([&](auto t) BN_LAMBDA {
                    const Bytes word = bits<Bytes>(words[pair * Tokens + t] - Int{});
                    unroll<kDotGroups>([&](auto g) BN_LAMBDA { sums[t][g] = dpbusd(sums[t][g], codes[g], word); });
                });
            });
            for (size_t line = 0; line < kStep; line += kBlockBytes)
                __builtin_prefetch(next + size_t(b) * kStep + line, 0, 2);
            __builtin_prefetch(at.ahead + size_t(at.row / 16) * group_bytes, 0, 2);
            words += 4 * Tokens, at.row += kRowsABlock;
            at.index += kRowsABlock, at.sums += kRowsABlock, at.before += at.before_step;
            if (__builtin_expect(at.row == at.rows, 0)) {
                next_block();
                at = lookups();
            }
        }
        next_row_ = at.row;
        unroll<kDotTokens>([&](auto t) BN_LAMBDA {
            unroll<kDotGroups>([&](auto g) BN_LAMBDA {
                if (token + t < q_.tokens) write(group + g, token + t, sums[t][g] - q_.sums[token + t]);
            });
        });
    }

    // The next row to look up. The first block of a span adds to zeros, the others to what their predecessors left.
    struct Lookups {
        int row, rows;
        const uint32_t* index;
        Entry* sums;
        const Entry* before;
        size_t before_step;
        const uint8_t* ahead;  // the first row's weights of the same block in the next span
    };
    Lookups lookups() const {
        const bool begins = block_ % kSpanBlocks == 0;
        const size_t block = size_t(block_), row = size_t(next_row_);
        return {next_row_,
                int(rows_),
                indices_ + block % kSpanBlocks * rows_ + row,
                narrow_ + row,
                begins ? zeros_ : narrow_ + row,
                begins ? 0 : size_t(kRowsABlock),
                weights(first_group_) + (block + kSpanBlocks) * kBlockBytes};
    }

    // Sixteen looked-up rows of up to sixteen tokens.
    void finish(int g, int token) {
        Zmm sums[16];
        for (int row = 0; row < 16; ++row)
            sums[row] = load_lanes(sums_ + (size_t(g) * 16 + size_t(row)) * Tokens + token);
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
    const int blocks_, first_group_, lookup_groups_, dot_groups_;
    const size_t rows_;  // that are looked up
    Entry* tables_;      // [4][kEntries], of the present block
    int32_t* words_;     // [blocks * 4][Tokens]
    uint32_t* indices_;  // [kSpanBlocks][rows]: four numbers of 0..80
    Entry* narrow_;      // [rows], of the present span
    int32_t* sums_;      // [rows][Tokens], of the spans before it
    Entry* zeros_;       // [kRowsABlock]
    const float* residual_ = nullptr;
    float* out_ = nullptr;
    int block_ = -1, next_row_ = 0;  // what is looked up next
};

template <int Tokens>
void linear_wide(const bn_quantized& q, const bn_weights& w, const float* residual, float* out, int32_t first_token,
                 int32_t tokens, int32_t first_group, int32_t groups, uint8_t* scratch) {
    const size_t codes = size_t(first_token) * size_t((w.width + 15) / 16) * 16;
    const size_t outputs = size_t(first_token) * size_t(w.rows);
    const bn_quantized part{q.codes + codes, q.scale + first_token, q.sums + first_token, tokens, q.width};
    const float* part_residual = residual ? residual + outputs : nullptr;
    WideTile<Tokens> tile(part, w, first_group, groups);
    Carver carver(scratch);
    tile.carve(carver);
    tile.run(part_residual, out + outputs);
    const int left = groups % WideTile<Tokens>::kUnit;
    linear(part, w, part_residual, out + outputs, first_group + groups - left, first_group + groups);
}

template <int Tokens>
size_t wide_scratch(const bn_weights& w, int32_t groups) {
    Carver measure(nullptr);
    WideTile<Tokens>({}, w, 0, groups).carve(measure);
    return measure.used();
}

template <int Tokens>
constexpr bitnet::WideKernels wide_kernels(int32_t least_tokens, int32_t least_groups, int32_t most_groups) {
    return {Tokens, least_tokens, least_groups, most_groups, wide_scratch<Tokens>, linear_wide<Tokens>};
}

}  // namespace
