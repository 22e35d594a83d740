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
    explicit Scratch(bool huge = false) : huge_(huge) {}
    ~Scratch() { release_pages(memory_, size_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    uint8_t* reserve(size_t bytes);  // at least so many, contents lost when it grows; throws std::bad_alloc

  private:
    const bool huge_;
    void* memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace bitnet
