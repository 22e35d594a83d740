// Sixteen lanes of float or int32, written once and compiled once per instruction set.
//
// Every kernel of this library works on 16 lanes whatever the register width: one zmm, two ymm, four xmm or NEON
// registers. Lane i always sees the same IEEE operations in the same order, so a float result does not depend on the
// instruction set. Each source that includes this file defines BN_LANES first: the lanes of one register, 4 (any
// machine), 8 (AVX2, after immintrin.h) or 16 (AVX-512, the same).
// Everything lives in an unnamed namespace: a function compiled for AVX-512 must never be the copy the linker keeps.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BN_INLINE inline __attribute__((always_inline))
#define BN_LAMBDA __attribute__((always_inline))

namespace {

constexpr int kLanes = BN_LANES;
constexpr int kParts = 16 / kLanes;

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Half __attribute__((vector_size(4 * kLanes)));
typedef int16_t Short __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(4 * kLanes)));
typedef uint16_t NarrowHalf __attribute__((vector_size(2 * kLanes)));
typedef int8_t NarrowByte __attribute__((vector_size(kLanes)));

template <int I>
struct Index {
    static constexpr int value = I;
    constexpr operator int() const { return I; }
};

template <int N, int I = 0, class Body>
BN_INLINE void unroll(const Body& body) {  // constant indices from the front end: gcc 12 spills arrays indexed by loops
    if constexpr (I < N) {
        body(Index<I>{});
        unroll<N, I + 1>(body);
    }
}

template <class Part>
struct Wide {
    Part part[kParts];
};
using F32x16 = Wide<Float>;
using I32x16 = Wide<Int>;

template <class To, class From>
BN_INLINE To bits(From value) {  // reinterpretation of a register
    static_assert(sizeof(To) == sizeof(From), "same width");
    return (To)value;
}

template <class Result, class Body, class... Part>
BN_INLINE Wide<Result> each(const Body& body, const Wide<Part>&... wide) {
    Wide<Result> out;
    unroll<kParts>([&](auto i) BN_LAMBDA { out.part[i] = body(wide.part[i]...); });
    return out;
}

template <class Part>
BN_INLINE Wide<Part> operator+(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Part>([](Part x, Part y) BN_LAMBDA { return x + y; }, a, b);
}
template <class Part>
BN_INLINE Wide<Part> operator-(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Part>([](Part x, Part y) BN_LAMBDA { return x - y; }, a, b);
}
template <class Part>
BN_INLINE Wide<Part> operator*(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Part>([](Part x, Part y) BN_LAMBDA { return x * y; }, a, b);
}
// a * b + c, rounded once: the same bits on every machine, and one instruction where there is one. Never left to the
// compiler, which would fuse here and not there.
BN_INLINE Float fused(Float a, Float b, Float c) {
#if BN_LANES == 16
    return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif BN_LANES == 8
    return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    Float out;
    for (int i = 0; i < kLanes; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
#endif
}
BN_INLINE F32x16 fused(const F32x16& a, const F32x16& b, const F32x16& c) {
    return each<Float>([](Float x, Float y, Float z) BN_LAMBDA { return fused(x, y, z); }, a, b, c);
}
BN_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) {
    return each<Float>([](Float x, Float y) BN_LAMBDA { return x / y; }, a, b);
}
// x > y ? x : y. Of a NaN and a number: the second operand.
template <class Part>
BN_INLINE Wide<Part> larger(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Part>([](Part x, Part y) BN_LAMBDA { return x > y ? x : y; }, a, b);
}
template <class Part>
BN_INLINE Wide<Part> smaller(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Part>([](Part x, Part y) BN_LAMBDA { return x < y ? x : y; }, a, b);
}
template <class Part>
BN_INLINE I32x16 less(const Wide<Part>& a, const Wide<Part>& b) {
    return each<Int>([](Part x, Part y) BN_LAMBDA { return (Int)(x < y); }, a, b);
}
template <class Part>
BN_INLINE Wide<Part> select(const I32x16& mask, const Wide<Part>& yes, const Wide<Part>& no) {
    return each<Part>([](Int m, Part x, Part y) BN_LAMBDA { return m ? x : y; }, mask, yes, no);
}
BN_INLINE I32x16 magnitude_bits(const F32x16& a) {  // |a| as an integer: ordered like |a|, NaN above infinity
    return each<Int>([](Float x) BN_LAMBDA { return bits<Int>(x) & 0x7fffffff; }, a);
}
BN_INLINE F32x16 as_float(const I32x16& a) {
    return each<Float>([](Int x) BN_LAMBDA { return bits<Float>(x); }, a);
}
BN_INLINE F32x16 to_float(const I32x16& a) {
    return each<Float>([](Int x) BN_LAMBDA { return __builtin_convertvector(x, Float); }, a);
}
BN_INLINE I32x16 to_int(const F32x16& a) {  // truncates; the caller keeps it in range
    return each<Int>([](Float x) BN_LAMBDA { return __builtin_convertvector(x, Int); }, a);
}
BN_INLINE F32x16 fill(float value) {
    F32x16 out;
    unroll<kParts>([&](auto i) BN_LAMBDA { out.part[i] = value - Float{}; });
    return out;
}
BN_INLINE I32x16 fill(int32_t value) {
    I32x16 out;
    unroll<kParts>([&](auto i) BN_LAMBDA { out.part[i] = value - Int{}; });
    return out;
}

template <class Part>
BN_INLINE Part load_part(const void* from) {
    Part part;
    __builtin_memcpy(&part, from, sizeof part);
    return part;
}
BN_INLINE F32x16 load(const float* from) {
    F32x16 out;
    unroll<kParts>([&](auto i) BN_LAMBDA { out.part[i] = load_part<Float>(from + i * kLanes); });
    return out;
}
BN_INLINE I32x16 load(const int32_t* from) {
    I32x16 out;
    unroll<kParts>([&](auto i) BN_LAMBDA { out.part[i] = load_part<Int>(from + i * kLanes); });
    return out;
}
BN_INLINE void store(float* to, const F32x16& value) {
    unroll<kParts>([&](auto i) BN_LAMBDA { __builtin_memcpy(to + i * kLanes, &value.part[i], sizeof(Float)); });
}
BN_INLINE void store(int32_t* to, const I32x16& value) {
    unroll<kParts>([&](auto i) BN_LAMBDA { __builtin_memcpy(to + i * kLanes, &value.part[i], sizeof(Int)); });
}
BN_INLINE F32x16 load(const float* from, int count) {  // the first `count` lanes, zero beyond
    if (count >= 16) return load(from);
    float lanes[16] = {};
    __builtin_memcpy(lanes, from, sizeof(float) * size_t(count));
    return load(lanes);
}
template <class Lane, class Part>
BN_INLINE void store(Lane* to, const Wide<Part>& value, int count) {  // the first `count` lanes
    if (count >= 16) return store(to, value);
    Lane lanes[16];
    store(lanes, value);
    __builtin_memcpy(to, lanes, sizeof(Lane) * size_t(count));
}

// Conversions that gcc 12 takes apart lane by lane on AVX2 and AVX-512: named there, left to the compiler elsewhere.
#if BN_LANES == 16  // all lanes by mask: the plain forms warn in gcc 12's own header
BN_INLINE Word widen_halves(const uint16_t* from) {
    return (Word)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)from));
}
BN_INLINE Int widen_bytes(const int8_t* from) {
    return (Int)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)from));
}
#elif BN_LANES == 8
BN_INLINE Word widen_halves(const uint16_t* from) {
    return (Word)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
}
BN_INLINE Int widen_bytes(const int8_t* from) {
    return (Int)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
#else
BN_INLINE Word widen_halves(const uint16_t* from) {
    return __builtin_convertvector(load_part<NarrowHalf>(from), Word);
}
BN_INLINE Int widen_bytes(const int8_t* from) { return __builtin_convertvector(load_part<NarrowByte>(from), Int); }
#endif

// The low byte of each lane; the lanes lie in -128..127.
BN_INLINE void store_bytes(int8_t* to, const I32x16& value) {
#if BN_LANES == 8
    const __m256i halves = _mm256_packs_epi32((__m256i)value.part[0], (__m256i)value.part[1]);  // 0-3 8-11 4-7 12-15
    const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128((__m128i*)to, bytes);
#else
    unroll<kParts>([&](auto i) BN_LAMBDA {
        const NarrowByte narrow = __builtin_convertvector(value.part[i], NarrowByte);
        __builtin_memcpy(to + i * kLanes, &narrow, sizeof narrow);
    });
#endif
}

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IntQuad __attribute__((vector_size(16)));

// One order everywhere: lane i with i+8, then i+4, i+2, i+1.
template <class Lane, class Four, class Part, class Pair>
BN_INLINE Lane reduce(const Wide<Part>& value, const Pair& pair) {
    Four quads[4];
    __builtin_memcpy(quads, &value, sizeof quads);
    const Four four = pair(pair(quads[0], quads[2]), pair(quads[1], quads[3]));
    const Four two = pair(four, Four{four[2], four[3], four[2], four[3]});
    return pair(two, Four{two[1], two[1], two[1], two[1]})[0];
}
BN_INLINE float total(const F32x16& value) {
    return reduce<float, Quad>(value, [](Quad a, Quad b) BN_LAMBDA { return a + b; });
}
BN_INLINE int32_t total(const I32x16& value) {
    return reduce<int32_t, IntQuad>(value, [](IntQuad a, IntQuad b) BN_LAMBDA { return a + b; });
}
BN_INLINE float largest(const F32x16& value) {
    return reduce<float, Quad>(value, [](Quad a, Quad b) BN_LAMBDA { return a > b ? a : b; });
}
BN_INLINE int32_t largest(const I32x16& value) {
    return reduce<int32_t, IntQuad>(value, [](IntQuad a, IntQuad b) BN_LAMBDA { return a > b ? a : b; });
}

// Round half to even, for |x| < 2^22: the sum with 1.5 * 2^23 has no fraction bits left.
BN_INLINE F32x16 nearest(const F32x16& x) {
    const F32x16 magic = fill(12582912.0f);
    return (x + magic) - magic;
}

// e^x for x <= 0 (Cody and Waite's reduction, the degree 6 polynomial of Cephes expf). 0 below -87, NaN stays NaN.
BN_INLINE F32x16 exp_nonpositive(const F32x16& x) {
    const F32x16 low = fill(-87.0f);
    const F32x16 inside = select(less(x, low), low, x);
    const F32x16 n = nearest(inside * fill(1.44269504088896341f));
    const F32x16 r = fused(n, fill(2.12194440e-4f), fused(n, fill(-0.693359375f), inside));
    F32x16 p = fill(1.9875691500e-4f);
    p = fused(p, r, fill(1.3981999507e-3f));
    p = fused(p, r, fill(8.3334519073e-3f));
    p = fused(p, r, fill(4.1665795894e-2f));
    p = fused(p, r, fill(1.6666665459e-1f));
    p = fused(p, r, fill(5.0000001201e-1f));
    p = fused(p, r * r, r) + fill(1.0f);
    // A NaN must not reach the conversion (undefined); its polynomial is NaN whatever the exponent is.
    const F32x16 exponent = select(less(fill(-127.0f), n), n, fill(0.0f));
    const I32x16 power = each<Int>([](Int e) BN_LAMBDA { return (e + 127) << 23; }, to_int(exponent));
    return select(less(x, low), fill(0.0f), p * as_float(power));
}

}  // namespace
