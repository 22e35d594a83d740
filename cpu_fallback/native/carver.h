// One reservation cut into parts. Unnamed, as in simd.h: sources of different instruction sets include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

// Hands out 64-byte aligned parts of one reservation, in order. Run once with nullptr it measures what is needed.
class Carver {
  public:
    explicit Carver(uint8_t* base) : base_(base) {}

    template <class T>
    T* take(size_t count) {
        uint8_t* at = base_ + used_;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(at);
    }
    size_t used() const { return used_; }

  private:
    uint8_t* base_;
    size_t used_ = 0;
};

}  // namespace
