// Storage types and their conversion to the accumulator type: fp32 for everything but fp64.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace lewel::cpu {

enum class DType : int { f32, f64, f16, bf16 };

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

template <class T>
constexpr DType kDType = DType::f32;
template <>
constexpr inline DType kDType<double> = DType::f64;

LEWEL_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
LEWEL_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

LEWEL_INLINE float widen(float x) { return x; }
LEWEL_INLINE double widen(double x) { return x; }
LEWEL_INLINE float widen(bf16 x) { return float_of(uint32_t{x.bits} << 16); }
LEWEL_INLINE float widen(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = uint32_t(x.bits & 0x7fff) << 13;
  // the exponent field is 112 short; a product by 2^112 mends it for denormals too, but not for inf and NaN
  const float finite = float_of(magnitude) * 0x1p112f;
  const uint32_t u = magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : bits_of(finite);
  return float_of(u | sign);
}

LEWEL_INLINE void narrow(float x, float& y) { y = x; }
LEWEL_INLINE void narrow(float x, double& y) { y = x; }
LEWEL_INLINE void narrow(float x, bf16& y) {
  const uint32_t u = bits_of(x);
  y.bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);  // to nearest, ties to even
}
LEWEL_INLINE void narrow(float x, f16& y) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  uint32_t r;
  if (magnitude > 0x7f800000) {
    r = 0x7e00;
  } else if (magnitude >= 0x47800000) {
    r = 0x7c00;  // 65536 and above; 65520 .. 65536 become inf by the carry below
  } else if (magnitude < 0x38800000) {
    // below the least normal 2^-14: adding 0.5 lets the fp32 adder round to multiples of 2^-24
    r = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  } else {
    r = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  y.bits = uint16_t(sign | r);
}
LEWEL_INLINE void narrow(double x, double& y) { y = x; }
template <class T>
LEWEL_INLINE void narrow(double x, T& y) {
  narrow(static_cast<float>(x), y);
}

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// One vector of accumulators from storage.
template <class A, class T>
LEWEL_INLINE Vec<A> load_as(const T* p) {
  Vec<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = static_cast<A>(widen(p[i]));
  return v;
}
template <>
LEWEL_INLINE Vec<float> load_as<float, float>(const float* p) { return load(p); }
template <>
LEWEL_INLINE Vec<double> load_as<double, double>(const double* p) { return load(p); }
template <>
LEWEL_INLINE Vec<float> load_as<float, bf16>(const bf16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  const Words u = __builtin_convertvector(h, Words) << 16;
  Vec<float> v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

template <class A, class T>
LEWEL_INLINE void store_as(T* p, Vec<A> v) {
  for (int i = 0; i < kLanes<A>; ++i) narrow(v[i], p[i]);
}
template <>
LEWEL_INLINE void store_as<float, float>(float* p, Vec<float> v) { store(p, v); }
template <>
LEWEL_INLINE void store_as<double, double>(double* p, Vec<double> v) { store(p, v); }
template <>
LEWEL_INLINE void store_as<float, bf16>(bf16* p, Vec<float> v) {
  Words u;
  std::memcpy(&u, &v, sizeof u);
  const Words quiet = Words{} + 0x7fc0;
  const Words r = (v != v) ? quiet : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Halves h = __builtin_convertvector(r, Halves);
  std::memcpy(p, &h, sizeof h);
}

#if defined(__AVX512F__)
template <>
LEWEL_INLINE Vec<float> load_as<float, f16>(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <>
LEWEL_INLINE void store_as<float, f16>(f16* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX__) && defined(__F16C__)
template <>
LEWEL_INLINE Vec<float> load_as<float, f16>(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <>
LEWEL_INLINE void store_as<float, f16>(f16* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

// Calls f with a null T* whose type is the storage type.
template <class F>
LEWEL_INLINE void with_storage(DType t, F&& f) {
  switch (t) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f64: return f(static_cast<double*>(nullptr));
    case DType::f16: return f(static_cast<f16*>(nullptr));
    case DType::bf16: return f(static_cast<bf16*>(nullptr));
  }
}

}  // namespace lewel::cpu
