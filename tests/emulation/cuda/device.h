// In the place of csrc/cuda/device.h, where each function is described: the same kernels, compiled by a C++ compiler
// that finds this folder before csrc/, with -DLEWEL_EMULATED=70 or 80, and run by emulation::run, show mistakes in them
// without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "machine.h"
#include "cuda/numbers.h"

#define LEWEL_DEVICE inline
#define LEWEL_HOST_DEVICE inline
#define LEWEL_KERNEL(...) inline void

// The last parameter of what can be called wrongly, which no kernel gives.
#define LEWEL_LINE emulation::Line line = emulation::Line::called()

namespace lewel::cuda {

constexpr int kArch = LEWEL_EMULATED;
static_assert(kArch == 70 || kArch == 80, "LEWEL_EMULATED is 70 or 80");

namespace emulation {

// Said by every function of kArch 80.
inline void needs_80(const char* name, Line line) {
  if (kArch < 80) fail(std::string("calls ") + name + ", which kArch 70 does not have", line);
}

inline uint32 bits_of(float x) {
  uint32 u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float float_of(uint32 u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

}  // namespace emulation

// ---- numbers

template <class A, class T>
LEWEL_DEVICE A widen(T x) {
  return static_cast<A>(x);
}
template <>
LEWEL_DEVICE float widen<float, Half>(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32 sign = uint32{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x400)  // subnormal: a multiple of 2^-24
    return emulation::float_of(sign | emulation::bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  return emulation::float_of(sign | ((magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23)));
#endif
}
template <>
LEWEL_DEVICE float widen<float, BFloat16>(BFloat16 x) {
  return emulation::float_of(uint32{x.bits} << 16);
}

template <class T, class A>
LEWEL_DEVICE T rounded(A x) {
  return static_cast<T>(x);
}
template <>
LEWEL_DEVICE Half rounded<Half, float>(float x) {
  if (x != x) return {0x7fff};
#if defined(__F16C__)
  return {static_cast<unsigned short>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32 u = emulation::bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  uint32 r;
  if (magnitude >= 0x47800000)
    r = 0x7c00;  // 65536 and above
  else if (magnitude < 0x38800000)  // below 2^-14, the least normal: the sum is rounded to a multiple of 2^-24
    r = emulation::bits_of(emulation::float_of(magnitude) + 0.5f) - 0x3f000000;
  else
    r = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return {static_cast<unsigned short>(sign | r)};
#endif
}
template <>
LEWEL_DEVICE BFloat16 rounded<BFloat16, float>(float x) {
  if (x != x) return {0x7fff};
  const uint32 u = emulation::bits_of(x);
  return {static_cast<unsigned short>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

LEWEL_DEVICE float infinity() { return __builtin_huge_valf(); }
LEWEL_DEVICE float power_of_two(float x) { return ::exp2f(x); }
LEWEL_DEVICE double power_of_two(double x) { return ::exp2(x); }
LEWEL_DEVICE float square_root(float x) { return ::sqrtf(x); }
LEWEL_DEVICE double square_root(double x) { return ::sqrt(x); }

LEWEL_DEVICE int opaque(int x) { return x; }

// ---- threads

LEWEL_DEVICE int thread() { return emulation::here->thread; }
LEWEL_DEVICE int lane() { return emulation::here->thread % 32; }
LEWEL_DEVICE int warp() { return emulation::here->thread / 32; }
LEWEL_DEVICE int block_x() { return emulation::here->x; }
LEWEL_DEVICE int block_y() { return emulation::here->y; }
LEWEL_DEVICE int block_z() { return emulation::here->z; }

LEWEL_DEVICE void block_barrier(LEWEL_LINE) { emulation::block_barrier(line); }

LEWEL_DEVICE void warp_barrier(LEWEL_LINE) {
  emulation::collective({emulation::Collective::warp_barrier, 0, line, nullptr, nullptr, nullptr, 0});
}

template <class A>
LEWEL_DEVICE A shuffle_xor(A x, int mask, LEWEL_LINE) {
  static_assert(sizeof(A) == 4 || sizeof(A) == 8);
  A y;
  emulation::collective({emulation::Collective::shuffle, sizeof(A), line, &y, &x, nullptr, mask});
  return y;
}

LEWEL_DEVICE char* shared_memory() { return emulation::here->shared; }

// ---- copies of 16 bytes

struct alignas(16) Vector {
  uint32 words[4];
};

LEWEL_DEVICE void copy_async(void* shared, const void* global, int bytes, LEWEL_LINE) {
  emulation::needs_80("copy_async", line);
  emulation::start_copy(shared, global, bytes, line);
}

LEWEL_DEVICE void copy_async_commit(LEWEL_LINE) {
  emulation::needs_80("copy_async_commit", line);
  emulation::commit_copies();
}

template <int PENDING>
LEWEL_DEVICE void copy_async_wait(LEWEL_LINE) {
  static_assert(PENDING >= 0);
  emulation::needs_80("copy_async_wait", line);
  emulation::await_copies(PENDING);
}

// ---- matrix products of 16-bit numbers, by all lanes of a warp together

LEWEL_DEVICE void load_matrices(uint32 (&words)[4], const void* row, bool transposed, LEWEL_LINE) {
  emulation::needs_80("load_matrices", line);
  emulation::collective({emulation::Collective::load_matrices, transposed, line, words, row, nullptr, 0});
}

LEWEL_DEVICE void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], Half, LEWEL_LINE) {
  emulation::needs_80("multiply_add of 16 x 8", line);
  emulation::collective({emulation::Collective::multiply_half, 0, line, d, a, b, 0});
}
LEWEL_DEVICE void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], BFloat16, LEWEL_LINE) {
  emulation::needs_80("multiply_add of 16 x 8", line);
  emulation::collective({emulation::Collective::multiply_bfloat16, 0, line, d, a, b, 0});
}

struct Operand {
  uint32 words[8];
};
struct Sum {
  float values[8];
};

template <bool COLUMNS>
LEWEL_DEVICE void load_left(Operand& x, const Half* p, int ld, LEWEL_LINE) {
  emulation::collective({emulation::Collective::load_left, COLUMNS, line, x.words, p, nullptr, ld});
}

template <bool COLUMNS>
LEWEL_DEVICE void load_right(Operand& x, const Half* p, int ld, LEWEL_LINE) {
  emulation::collective({emulation::Collective::load_right, COLUMNS, line, x.words, p, nullptr, ld});
}

template <bool LEFT_COLUMNS, bool RIGHT_COLUMNS>
LEWEL_DEVICE void multiply_add(Sum& d, const Operand& a, const Operand& b, LEWEL_LINE) {
  emulation::collective({emulation::Collective::multiply_sums, LEFT_COLUMNS + 2 * RIGHT_COLUMNS, line, d.values,
                         a.words, b.words, 0});
}

LEWEL_DEVICE void store_sum(float* p, const Sum& d, int ld, LEWEL_LINE) {
  emulation::collective({emulation::Collective::store_sum, 0, line, p, d.values, nullptr, ld});
}

}  // namespace lewel::cuda

#undef LEWEL_LINE
