#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace bitnet {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

size_t whole_pages(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

}  // namespace

void* allocate_pages(size_t bytes, bool huge) {
    const size_t size = whole_pages(bytes), slack = size >= kHugePage ? kHugePage : 0;
    void* raw = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    if (!slack) return raw;
    const size_t before = (kHugePage - size_t(reinterpret_cast<uintptr_t>(raw)) % kHugePage) % kHugePage;
    uint8_t* memory = static_cast<uint8_t*>(raw) + before;
    if (before) munmap(raw, before);
    if (slack > before) munmap(memory + size, slack - before);
#ifdef MADV_HUGEPAGE
    if (huge) madvise(memory, size, MADV_HUGEPAGE);  // a wish: refused, it changes nothing
#else
    (void)huge;
#endif
    return memory;
}

void release_pages(void* memory, size_t bytes) {
    if (memory) munmap(memory, whole_pages(bytes));
}

uint8_t* Scratch::reserve(size_t bytes) {
    if (huge_) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    if (bytes > size_) {
        release_pages(memory_, size_);
        memory_ = nullptr, size_ = 0;
        memory_ = allocate_pages(bytes, huge_);
        if (!memory_) throw std::bad_alloc();
        size_ = bytes;
    }
    return static_cast<uint8_t*>(memory_);
}

}  // namespace bitnet
