// Two limits of the machine at hand, one line each: GB/s read from memory and GMAC/s of the widest int8 dot product.
// Built for this machine by limits.py.   usage: cpu_limits THREADS [BYTES]   (the bytes are read again and again: fewer
// than a cache holds give the rate of that cache)
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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

constexpr size_t kBytes = size_t(512) << 20;  // far beyond any cache
constexpr int kPieces = 32;                   // of a thread's share: short enough to fall between interruptions
constexpr size_t kLeastPiece = size_t(1) << 18;  // long enough for the clock
constexpr long kRounds = 200'000;
constexpr int kSums = 10;  // chains of multiply(): enough to hide the latency
volatile uint64_t sink;

// The thread's own processor time: what other programs take from it is not counted.
double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

void read_all(const uint64_t* from, size_t words) {
#if defined(__AVX512F__)
    typedef uint64_t Wide __attribute__((vector_size(64)));
#else
    typedef uint64_t Wide __attribute__((vector_size(32)));
#endif
    constexpr size_t kLanes = sizeof(Wide) / sizeof(uint64_t);
    const Wide* wide = reinterpret_cast<const Wide*>(from);
    Wide a{}, b{}, c{}, d{};
    for (size_t i = 0; i + 4 <= words / kLanes; i += 4)
        a += wide[i], b += wide[i + 1], c += wide[i + 2], d += wide[i + 3];
    const Wide all = a + b + c + d;
    for (size_t i = 0; i < kLanes; ++i) sink = sink + all[i];
}

#if defined(__x86_64__)
#define OPAQUE(v) asm volatile("" : "+x"(v))  // a new value as far as the compiler knows: nothing is reused
#elif defined(__aarch64__)
#define OPAQUE(v) asm volatile("" : "+w"(v))
#endif

void multiply(long rounds) {
    Vector s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, x{}, y{};
    const auto step = [&](Vector& sum) __attribute__((always_inline)) {
        sum = dot(sum, x, y);
        OPAQUE(sum);
        OPAQUE(x);
    };
    for (long r = 0; r < rounds; ++r) {
        OPAQUE(y);
        step(s0), step(s1), step(s2), step(s3), step(s4), step(s5), step(s6), step(s7), step(s8), step(s9);
    }
    Vector all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9;
    OPAQUE(all);
}

// Seconds of the median piece of a thread, all threads at it together, and each several times over its pieces.
template <class Body>
double median_piece(int threads, int pieces, const Body& body) {
    std::vector<double> medians(static_cast<size_t>(threads));
    const auto work = [&](int thread) {
        std::vector<double> times;
        for (int i = 0; i < 4 * kPieces; ++i) {
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
    const size_t piece = std::max<size_t>(share / size_t(pieces) / 512, 1) * 64;  // in words
    const size_t words = piece * size_t(pieces) * size_t(threads);
    auto* memory = static_cast<uint64_t*>(std::aligned_alloc(64, words * 8));
    for (size_t i = 0; i < words; ++i) memory[i] = i;
    const double reading =
        median_piece(threads, pieces, [&](int t, int i) { read_all(memory + size_t(t * pieces + i) * piece, piece); });
    const double multiplying = median_piece(threads, pieces, [](int, int) { multiply(kRounds); });
    std::printf("%.2f\n", double(piece * 8) * threads / reading / 1e9);
    std::printf("%.2f %s\n", double(kRounds) * kSums * kMacs * threads / multiplying / 1e9, kName);
    std::free(memory);
}
