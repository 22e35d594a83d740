// AVX2 without VNNI: vpmaddubsw into 16-bit sums, widened before they can overflow.
#include <immintrin.h>

#define BN_LANES 8
#include "simd.h"

namespace {

// A lane of vpmaddubsw takes two products. Batch: 16 blocks * 4 words * 2 * 2 * 127 = 32512 < 2^15. One row, odd pairs
// masked in place (codes up to 8): 8 blocks * 2 words * 2 * 8 * 127 = 32512. Halves: 4 blocks * 2 words * 2 * 15 * 127
// = 30480. None can saturate or wrap.
constexpr int kSpan = 16, kRowSpan = 8, kHalvesSpan = 4;
constexpr int kLinearGroups = 1, kLinearTokens = 6, kRowGroups = 2, kHeadGroups = 1, kHeadTokens = 4;
constexpr int kPrefetchBytes = 2048, kHeadOffset = 0;

using Partial = Short;
BN_INLINE Partial zero() { return Partial{}; }
BN_INLINE Partial add(Partial sum, Bytes codes, Bytes x) {
    sum += (Short)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
    asm("" : "+x"(sum));  // gcc 12 sinks the additions below all products of a block, and spills the products
    return sum;
}
BN_INLINE Int widen(Short pairs) { return (Int)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
BN_INLINE Int fold(Int sum, Partial partial) { return sum + widen(partial); }

BN_INLINE Bytes head_x(Bytes x) { return x; }
// |w| * (x with w's sign): both operands lie in -127..127, so a pair is at most 32258.
BN_INLINE Int head_add(Int sum, Bytes w, Bytes x) {
    const __m256i size = _mm256_abs_epi8((__m256i)w), turned = _mm256_sign_epi8((__m256i)x, (__m256i)w);
    return sum + widen((Short)_mm256_maddubs_epi16(size, turned));
}

}  // namespace

#include "table.h"

namespace bitnet {
const Kernels* avx2_kernels() {
    static constexpr Kernels table = make_table("avx2");
    return &table;
}
}  // namespace bitnet
