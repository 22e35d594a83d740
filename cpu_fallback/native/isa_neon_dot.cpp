// ARM with the dot product extension: sdot; codes up to 15 are as good signed as unsigned.
#include <arm_neon.h>

#define BN_LANES 4
#include "simd.h"

namespace {

constexpr int kSpan = 1 << 30, kRowSpan = 1 << 30, kHalvesSpan = 1 << 30;  // 32-bit sums
constexpr int kLinearGroups = 1, kLinearTokens = 6, kRowGroups = 2, kHeadGroups = 1, kHeadTokens = 6;
constexpr int kPrefetchBytes = 1024, kHeadOffset = 0;

using Partial = Int;
BN_INLINE Partial zero() { return Partial{}; }
BN_INLINE Int sdot(Int sum, Bytes a, Bytes b) { return (Int)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b); }
BN_INLINE Partial add(Partial sum, Bytes codes, Bytes x) { return sdot(sum, codes, x); }
BN_INLINE Int fold(Int sum, Partial partial) { return sum + partial; }

BN_INLINE Bytes head_x(Bytes x) { return x; }
BN_INLINE Int head_add(Int sum, Bytes w, Bytes x) { return sdot(sum, w, x); }

}  // namespace

#include "table.h"

namespace bitnet {
const Kernels* neon_dot_kernels() {
    static constexpr Kernels table = make_table("neon_dot");
    return &table;
}
}  // namespace bitnet
