// Three limits of the machine at hand, one line each: GB/s read from memory in the best of several patterns, GMAC/s of
// the widest int8 dot product, and billions of fp32 products and sums a second, unfused as in our kernels.
// Built for this machine by limits.py.   usage: cpu_limits THREADS [BYTES]   (the bytes are read again and again: fewer
// than a cache holds give the rate of that cache)
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)
using Vector = __m512i;
constexpr int kMacs = 64;
constexpr const char* kName = "vpdpbusd zmm";
Vector dot(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
using Vector = __m256i;
constexpr int kMacs = 32;
constexpr const char* kName = "vpdpbusd ymm";
Vector dot(Vector sum, Vector a, Vector b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#elif defined(__AVX2__)
using Vector = __m256i;
constexpr int kMacs = 32;
constexpr const char* kName = "vpmaddubsw + vpaddw ymm";
Vector dot(Vector sum, Vector a, Vector b) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)); }
#elif defined(__ARM_FEATURE_DOTPROD)
using Vector = int32x4_t;
constexpr int kMacs = 16;
constexpr const char* kName = "sdot";
Vector dot(Vector sum, Vector a, Vector b) { return vdotq_s32(sum, (int8x16_t)a, (int8x16_t)b); }
#else
typedef int16_t Vector __attribute__((vector_size(16)));
constexpr int kMacs = 8;
constexpr const char* kName = "16-bit multiply and add";
Vector dot(Vector sum, Vector a, Vector b) { return sum + a * b; }
#endif

constexpr size_t kBytes = size_t(256) << 20;  // far beyond any cache
constexpr int kPieces = 32;                   // of a thread's share: short enough to fall between interruptions
constexpr size_t kLeastPiece = size_t(1) << 18;  // long enough for the clock
constexpr long kRounds = 200'000;
constexpr int kSums = 10;  // chains of multiply: enough to hide the latency
volatile uint64_t sink;

// The thread's own processor time: what other programs take from it is not counted.
double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

#if defined(__AVX512F__)
typedef uint64_t Words __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef uint64_t Words __attribute__((vector_size(32)));
#else
typedef uint64_t Words __attribute__((vector_size(16)));
#endif
constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;

// Reads `bytes` as so many streams side by side, each asking for what comes `kAhead` bytes later, 0 for nothing.
template <size_t kStreams, size_t kAhead>
void read_all(const char* from, size_t bytes) {
    constexpr size_t kWords = kLine / sizeof(Words);
    const size_t length = bytes / kStreams / kLine * kLine;
    Words sums[kStreams][kWords]{};
    for (size_t at = 0; at < length; at += kLine) {
        for (size_t s = 0; s < kStreams; ++s) {
            const char* line = from + s * length + at;
            if (kAhead != 0) __builtin_prefetch(line + kAhead);
            for (size_t w = 0; w < kWords; ++w) sums[s][w] += reinterpret_cast<const Words*>(line)[w];
        }
    }
    for (const auto& stream : sums)
        for (const Words& sum : stream) sink = sink + sum[0];
}

// What reads fastest depends on the processor and on how many threads read: the limit is the best of these.
constexpr void (*kReaders[])(const char*, size_t) = {
    read_all<1, 0>,    read_all<1, 1024>, read_all<1, 2048>, read_all<1, 4096>, read_all<2, 0>,
    read_all<2, 1024>, read_all<2, 2048>, read_all<2, 4096>, read_all<4, 0>,    read_all<4, 1024>,
    read_all<4, 2048>, read_all<8, 1024>,
};

#if defined(__AVX512F__)
typedef float Floats __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float Floats __attribute__((vector_size(32)));
#else
typedef float Floats __attribute__((vector_size(16)));
#endif
constexpr int kFloats = sizeof(Floats) / sizeof(float);

#if defined(__x86_64__)
#define OPAQUE(v) asm volatile("" : "+x"(v))  // a new value as far as the compiler knows: nothing is reused
#elif defined(__aarch64__)
#define OPAQUE(v) asm volatile("" : "+w"(v))
#endif

template <class Wide, class Step>
void multiply(long rounds, const Step& one) {
    Wide s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{};
    Wide x{}, y{};
    const auto step = [&](Wide& sum) __attribute__((always_inline)) {
        sum = one(sum, x, y);
        OPAQUE(sum);
        OPAQUE(x);
    };
    for (long r = 0; r < rounds; ++r) {
        OPAQUE(y);
        step(s0), step(s1), step(s2), step(s3), step(s4), step(s5), step(s6), step(s7), step(s8), step(s9);
    }
    Wide all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9;
    OPAQUE(all);
}

void multiply_bytes(long rounds) {
    multiply<Vector>(rounds, [](Vector s, Vector x, Vector y) { return dot(s, x, y); });
}

void multiply_floats(long rounds) {
    multiply<Floats>(rounds, [](Floats s, Floats x, Floats y) {
        Floats product = x * y;
        OPAQUE(product);
        return s + product;
    });
}

// Seconds of the median piece of a thread, each twice over its pieces. All begin a piece together: a thread that others
// keep from running would leave the memory to the rest, whose sum would then be more than the machine can do.
template <class Body>
double median_piece(int threads, int pieces, const Body& body) {
    std::vector<double> medians(static_cast<size_t>(threads));
    std::atomic<int> arrived{0};
    const auto work = [&](int thread) {
        std::vector<double> times;
        for (int i = 0; i < 2 * kPieces; ++i) {
            ++arrived;
            while (arrived < (i + 1) * threads) continue;
            const double start = seconds();
            body(thread, i % pieces);
            times.push_back(seconds() - start);
        }
        std::sort(times.begin(), times.end());
        medians[size_t(thread)] = times[times.size() / 2];
    };
    std::vector<std::thread> workers;
    for (int t = 1; t < threads; ++t) workers.emplace_back(work, t);
    work(0);
    for (auto& worker : workers) worker.join();
    double sum = 0;
    for (double median : medians) sum += median;
    return sum / threads;
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    const size_t bytes = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : kBytes;
    const size_t share = bytes / size_t(threads);
    const int pieces = int(std::clamp<size_t>(share / kLeastPiece, 1, kPieces));
    const size_t piece = std::max<size_t>(share / size_t(pieces) / kLine, 1) * kLine;
    const size_t all = (piece * size_t(pieces) * size_t(threads) + kHugePage - 1) / kHugePage * kHugePage;
    auto* memory = static_cast<char*>(std::aligned_alloc(kHugePage, all));
    madvise(memory, all, MADV_HUGEPAGE);  // as for weights: a walk through page tables is no limit of the memory
    std::memset(memory, 1, all);
    double reading = 1e9;
    for (const auto reader : kReaders) {
        const auto read = [&](int t, int i) { reader(memory + size_t(t * pieces + i) * piece, piece); };
        reading = std::min(reading, median_piece(threads, pieces, read));
    }
    const double bytes_s = median_piece(threads, pieces, [](int, int) { multiply_bytes(kRounds); });
    const double floats_s = median_piece(threads, pieces, [](int, int) { multiply_floats(kRounds); });
    std::printf("%.2f\n", double(piece) * threads / reading / 1e9);
    std::printf("%.2f %s\n", double(kRounds) * kSums * kMacs * threads / bytes_s / 1e9, kName);
    std::printf("%.2f\n", double(kRounds) * kSums * kFloats * threads / floats_s / 1e9);
    std::free(memory);
}
