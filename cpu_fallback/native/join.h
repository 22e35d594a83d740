// Sixteen rows of a table in halves put together again, in the layout of a whole table (abi.h).
#pragma once

#include "linear.h"
#if BN_LANES == 16
#include "registers_avx512.h"
#endif

namespace {

#if BN_LANES == 16
constexpr int kSide = 16;  // of the squares of words that are transposed: so many rows, and blocks, at a time
typedef Word Words;
BN_INLINE void transpose(Words (&rows)[kSide]) {
    Zmm registers[kSide];
    __builtin_memcpy(registers, rows, sizeof registers);
    transpose(registers);
    __builtin_memcpy(rows, registers, sizeof registers);
}
#else
constexpr int kSide = 4;
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint64_t Pairs __attribute__((vector_size(16)));
BN_INLINE void transpose(Words (&rows)[kSide]) {
    const auto zip = [&](int row, int word) BN_LAMBDA {  // two words of two rows
        const Words &a = rows[row], &b = rows[row + 1];
        return Pairs(Words{a[word], b[word], a[word + 1], b[word + 1]});
    };
    const Pairs e = zip(0, 0), f = zip(2, 0), g = zip(0, 2), h = zip(2, 2);
    rows[0] = Words(Pairs{e[0], f[0]}), rows[1] = Words(Pairs{e[1], f[1]});
    rows[2] = Words(Pairs{g[0], h[0]}), rows[3] = Words(Pairs{g[1], h[1]});
}
#endif

// Writes up to one block more than a whole table's group has.
void join(const bn_table& table, int32_t group, int8_t* to) {
    const int blocks = (table.width + 7) / 8;
    const size_t row_bytes = size_t((table.width + 127) / 128) * kBlockBytes;  // whole squares
    const auto* upper = reinterpret_cast<const uint8_t*>(table.blocks) + size_t(group) * size_t(blocks) * kBlockBytes;
    const uint8_t* lower = table.low + size_t(group) * 16 * row_bytes;
    for (int first = 0; first < blocks; first += kSide) {
        for (size_t line = size_t(first); line < size_t(first + kSide); ++line) {  // of the next group
            __builtin_prefetch(lower + 16 * row_bytes + line * kBlockBytes, 0, 2);
            __builtin_prefetch(upper + size_t(blocks) * kBlockBytes + line * kBlockBytes, 0, 2);
        }
        for (int row = 0; row < 16; row += kSide) {
            Words low[kSide];
            unroll<kSide>([&](auto i) BN_LAMBDA {
                low[i] = load_part<Words>(lower + size_t(row + i) * row_bytes + size_t(first) * 4);
            });
            transpose(low);
            const auto put = [&](auto i) BN_LAMBDA {
                const size_t at = size_t(first + i) * kBlockBytes + size_t(row) * 4;
                const Words high = load_part<Words>(upper + at);
                const Words even = ((high << 4 & 0xf0f0f0f0) | (low[i] & 0x0f0f0f0f)) ^ 0x80808080;
                const Words odd = ((high & 0xf0f0f0f0) | (low[i] >> 4 & 0x0f0f0f0f)) ^ 0x80808080;
                int8_t* block = to + size_t(first + i) * 2 * kBlockBytes + row * 4;
                __builtin_memcpy(block, &even, sizeof even);
                __builtin_memcpy(block + kBlockBytes, &odd, sizeof odd);
            };
            if (first + kSide <= blocks)
                unroll<kSide>(put);
            else
                unroll<kSide>([&](auto i) BN_LAMBDA { if (first + i < blocks) put(i); });
        }
    }
}

}  // namespace
