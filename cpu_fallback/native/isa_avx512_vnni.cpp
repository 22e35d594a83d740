// AVX-512 VNNI: vpdpbusd on zmm registers, 3 groups of 16 rows x 8 tokens in 24 accumulators.
#include <immintrin.h>

#define BN_LANES 16
#include "simd.h"

namespace {

constexpr int kLinearGroups = 3, kLinearTokens = 8, kRowGroups = 4, kHeadGroups = 3, kHeadTokens = 8;
constexpr int kPrefetchBytes = 2048;

BN_INLINE Int dpbusd(Int sum, Bytes u, Bytes s) {
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
}

}  // namespace

#include "dot_vnni.h"
#include "lookup_avx512.h"
#include "table.h"

namespace bitnet {
const Kernels* avx512_vnni_kernels() {
    static constexpr Kernels table =
        make_table("avx512_vnni", wide_kernels<32>(25, 40, 288), wide_kernels<16>(13, 40, 288),
                   wide_kernels<8>(8, 300, 432));
    return &table;
}
}  // namespace bitnet
