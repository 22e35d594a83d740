// Where a (block, layer, key-value head) keeps its keys and values in the cache.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

BN_INLINE uint8_t* page_of(const bn_cache& cache, int64_t block, int32_t layer, int32_t kv_head) {
    const size_t pages = (size_t(block) * size_t(cache.layers) + size_t(layer)) * size_t(cache.kv_heads);
    return cache.base + (pages + size_t(kv_head)) * cache.head_bytes;
}

}  // namespace
