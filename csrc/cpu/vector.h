// Vectors of T in the compiler's own notation, so that AVX-512, AVX2, baseline x86 and ARM compile one source.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define LEWEL_INLINE inline __attribute__((always_inline))

namespace lewel::cpu {

// Register tile (rows x vectors): as many accumulators as leave room for the operands among the 32 or 16 registers.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 7, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileRows = 6, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kTileRows = 7, kTileVectors = 4;
#else
constexpr int kVectorBytes = 16, kTileRows = 6, kTileVectors = 2;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
// Columns of one packed panel, the widest right-hand side a register tile reads.
template <class T>
constexpr int kPanel = kLanes<T> * kTileVectors;

template <class T>
constexpr int64_t padded(int64_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
LEWEL_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
template <class T>
LEWEL_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}
// A store past the caches: a large output is not read soon, and its lines need not be fetched before they are written.
// p is aligned to a whole vector. stream_fence() orders such stores before whatever other threads do next.
template <class T>
LEWEL_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  __m512i bits;
  std::memcpy(&bits, &v, sizeof v);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
#elif defined(__AVX__)
  __m256i bits;
  std::memcpy(&bits, &v, sizeof v);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
#else
  store(p, v);
#endif
}
LEWEL_INLINE void stream_fence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

template <class T>
LEWEL_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 keeps every x, -0 and NaN included
}

template <class T>
LEWEL_INLINE T sum_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// e^x for x <= 0 within 1 ulp, and 0 where it is below the least normal number; NaN stays NaN.
LEWEL_INLINE Vec<float> exp(Vec<float> x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const Vec<float> least = splat(-88.f);  // where n is -127 below
  x = x < least ? least : x;              // a comparison with NaN is false: it stays
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> n = (x * 1.44269504088896341f + kRound) - kRound;
  // x - n ln 2 in two parts, the first exact because the high part has 15 bits
  Vec<float> r = x - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  // Taylor to r^7/7!: the remainder on |r| <= ln(2)/2 is below 6e-9
  Vec<float> y = r * (1.f / 5040) + (1.f / 720);
  y = y * r + (1.f / 120);
  y = y * r + (1.f / 24);
  y = y * r + (1.f / 6);
  y = y * r + 0.5f;
  y = y * r + 1.f;
  y = y * r + 1.f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;  // of 2^n, and of 0 for n = -127
  Vec<float> scale;
  std::memcpy(&scale, &bits, sizeof bits);
  return y * scale;
}

LEWEL_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Lanes of the pair (a, b) after exchanging their off-diagonal Step x Step blocks.
template <class T, int Step, int... J>
LEWEL_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, J...>) {
  constexpr int n = kLanes<T>;
  const Vec<T> x = a, y = b;
#if defined(__clang__)
  a = __builtin_shufflevector(x, y, ((J & Step) ? n + J - Step : J)...);
  b = __builtin_shufflevector(x, y, ((J & Step) ? n + J : J + Step)...);
#else
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Index;
  a = __builtin_shuffle(x, y, Vec<Index>{((J & Step) ? n + J - Step : J)...});
  b = __builtin_shuffle(x, y, Vec<Index>{((J & Step) ? n + J : J + Step)...});
#endif
}

template <class T, int Step>
LEWEL_INLINE void transpose_steps(Vec<T> (&rows)[kLanes<T>]) {
  if constexpr (Step > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if ((i & Step) == 0) exchange<T, Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes<T>>{});
    transpose_steps<T, Step / 2>(rows);
  }
}

// A square block of registers, transposed in place by log2(lanes) rounds of block exchanges.
template <class T>
LEWEL_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  transpose_steps<T, kLanes<T> / 2>(rows);
}

}  // namespace lewel::cpu
