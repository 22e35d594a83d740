// AVX2 with AVX-VNNI: vpdpbusd on ymm registers.
#include <immintrin.h>

#define BN_LANES 8
#include "simd.h"

namespace {

constexpr int kLinearGroups = 1, kLinearTokens = 6, kRowGroups = 2, kHeadGroups = 1, kHeadTokens = 6;
constexpr int kPrefetchBytes = 2048;

BN_INLINE Int dpbusd(Int sum, Bytes u, Bytes s) {
    return (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)s);
}

}  // namespace

#include "dot_vnni.h"
#include "table.h"

namespace bitnet {
const Kernels* avx2_vnni_kernels() {
    static constexpr Kernels table = make_table("avx2_vnni");
    return &table;
}
}  // namespace bitnet
