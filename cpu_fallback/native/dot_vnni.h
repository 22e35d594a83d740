// vpdpbusd into 32-bit sums, for the two sources that have it; they define Int dpbusd(Int, Bytes u8, Bytes s8) first.
#pragma once

#include "simd.h"

namespace {

constexpr int kSpan = 1 << 30, kRowSpan = 1 << 30, kHalvesSpan = 1 << 30;  // 32-bit sums: 15 * 127 * K stays below 2^31

using Partial = Int;
BN_INLINE Partial zero() { return Partial{}; }
BN_INLINE Partial add(Partial sum, Bytes codes, Bytes x) { return dpbusd(sum, codes, x); }
BN_INLINE Int fold(Int sum, Partial partial) { return sum + partial; }

// The instruction wants one unsigned operand: x + 128, and 128 * sum(w) is taken out at the end.
constexpr int kHeadOffset = 128;
BN_INLINE Bytes head_x(Bytes x) { return x ^ 0x80; }
BN_INLINE Int head_add(Int sum, Bytes w, Bytes x) { return dpbusd(sum, x, w); }

}  // namespace
