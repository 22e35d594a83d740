// Memory by the page, and scratch that grows and is kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitnet {

// Zeroed, aligned to 2 MiB when that large; nullptr when refused. `huge` asks for huge pages: fewer misses of the
// address cache in a long read, but memory is then taken by 2 MiB.
void* allocate_pages(size_t bytes, bool huge);
void release_pages(void* memory, size_t bytes);

class Scratch {
  public:
    Scratch() = default;
    ~Scratch() { release_pages(memory_, size_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    uint8_t* reserve(size_t bytes);  // at least so many, contents lost when it grows; throws std::bad_alloc

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

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

}  // namespace bitnet
