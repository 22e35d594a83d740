// Which instruction sets this machine runs, asked of the processor and the system at run time.
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace bitnet {

#ifndef BN_HAVE_AVX2
const Kernels* avx2_kernels() { return nullptr; }
#endif
#ifndef BN_HAVE_AVX2_VNNI
const Kernels* avx2_vnni_kernels() { return nullptr; }
#endif
#ifndef BN_HAVE_AVX512_VNNI
const Kernels* avx512_vnni_kernels() { return nullptr; }
#endif
#ifndef BN_HAVE_NEON_DOT
const Kernels* neon_dot_kernels() { return nullptr; }
#endif

namespace {

// __builtin_cpu_supports also asks whether the system saves the wide registers.
#if defined(__x86_64__)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool runs_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2");
}
// gcc 12 has no name for AVX-VNNI: leaf 7, sub-leaf 1, EAX bit 4.
bool runs_avx2_vnni() {
    unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
    asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return runs_avx2() && (eax >> 4 & 1);
}
#else
bool runs_avx2() { return false; }
bool runs_avx512_vnni() { return false; }
bool runs_avx2_vnni() { return false; }
#endif

bool runs_neon_dot() {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    return true;
#else
    return false;
#endif
}

struct Entry {
    const char* isa;
    const Kernels* (*kernels)();
    bool (*runs)();
};

constexpr Entry kEntries[] = {
    {"avx512_vnni", avx512_vnni_kernels, runs_avx512_vnni},
    {"avx2_vnni", avx2_vnni_kernels, runs_avx2_vnni},
    {"avx2", avx2_kernels, runs_avx2},
    {"neon_dot", neon_dot_kernels, runs_neon_dot},
    {"portable", portable_kernels, [] { return true; }},
};

const Entry* entry_named(const char* isa) {
    for (const Entry& entry : kEntries)
        if (std::strcmp(entry.isa, isa) == 0) return &entry;
    return nullptr;
}

}  // namespace

const char* isa_refusal(const char* isa) {
    const Entry* entry = entry_named(isa);
    if (!entry) return "the native library knows no such instruction set";
    if (!entry->kernels()) return "the native library was built for another processor or without it";
    return entry->runs() ? nullptr : "this processor does not have it";
}

const Kernels* kernels_named(const char* isa) { return isa_refusal(isa) ? nullptr : entry_named(isa)->kernels(); }

}  // namespace bitnet
