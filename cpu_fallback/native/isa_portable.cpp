// Any machine: 16-byte vectors the compiler lowers to SSE2, NEON or plain code, products in 16 bits.
#define BN_LANES 4
#include "simd.h"

namespace {

// 4 * 32 * 2 * 127, 2 * 8 * (8 + 2) * 127 and 2 * 8 * 15 * 127 stay below 2^15
constexpr int kSpan = 32, kRowSpan = 8, kHalvesSpan = 8;
constexpr int kLinearGroups = 1, kLinearTokens = 2, kRowGroups = 1, kHeadGroups = 1, kHeadTokens = 2;
constexpr int kPrefetchBytes = 2048, kHeadOffset = 0;

// Even and odd bytes of each 16-bit lane apart, so that no shuffle is needed.
struct Partial {
    Short even, odd;
};
BN_INLINE Partial zero() { return {Short{}, Short{}}; }
BN_INLINE Short low_signed(Bytes x) { return bits<Short>(bits<Half>(x) << 8) >> 8; }
BN_INLINE Short high_signed(Bytes x) { return bits<Short>(x) >> 8; }
BN_INLINE Int pair_sums(Short x) { return ((bits<Int>(x) << 16) >> 16) + (bits<Int>(x) >> 16); }

BN_INLINE Partial add(Partial sum, Bytes codes, Bytes x) {
    return {sum.even + low_signed(codes) * low_signed(x), sum.odd + high_signed(codes) * high_signed(x)};
}
BN_INLINE Int fold(Int sum, Partial partial) { return sum + pair_sums(partial.even) + pair_sums(partial.odd); }

BN_INLINE Bytes head_x(Bytes x) { return x; }
BN_INLINE Int head_add(Int sum, Bytes w, Bytes x) {  // two products of 127 * 127 fit 16 bits
    return sum + pair_sums(low_signed(w) * low_signed(x) + high_signed(w) * high_signed(x));
}

}  // namespace

#include "table.h"

namespace bitnet {
const Kernels* portable_kernels() {
    static constexpr Kernels table = make_table("portable");
    return &table;
}
}  // namespace bitnet
