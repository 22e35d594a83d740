// What the lookups of lookup_avx512.h ask of registers: a transposition, digits of another base, a number for each token.
#pragma once

#include "simd.h"

namespace {

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
    const auto table = [](int unit) BN_LAMBDA {  // of the sixteen values of two digits
        const char one = char(unit), three = char(3 * unit);
        return _mm512_broadcast_i32x4(_mm_setr_epi8(0, one, char(2 * one), 0, three, char(three + one),
                                                    char(three + 2 * one), 0, char(2 * three), char(2 * three + one),
                                                    char(2 * three + 2 * one), 0, 0, 0, 0, 0));
    };
    const Zmm half = _mm512_set1_epi8(15);
    const Zmm first = _mm512_shuffle_epi8(table(1), _mm512_and_si512(codes, half));
    const Zmm second = _mm512_shuffle_epi8(table(9), _mm512_and_si512(_mm512_srli_epi16(codes, 4), half));
    return _mm512_add_epi8(first, second);
}

// A number for each token; gcc 12 converts no vectors of a size that a template leaves open.
template <int Tokens>
struct Lane;
#define BN_LANE(tokens)                                                                    \
    template <>                                                                            \
    struct Lane<tokens> {                                                                  \
        typedef int16_t Entry __attribute__((vector_size(2 * (tokens))));                  \
        typedef int32_t Words __attribute__((vector_size(4 * (tokens))));                  \
        static Entry narrow(Words words) { return __builtin_convertvector(words, Entry); } \
    };
BN_LANE(8) BN_LANE(16) BN_LANE(32)
#undef BN_LANE

}  // namespace
