// The one product kernel: C[rows, columns] (+)= A[rows, depth] B[depth, columns] in register tiles.
#pragma once

#include <array>

#include "blocks.h"

namespace lewel::cpu {

// Two bf16 of neighbouring depths, the first in the low half: an operand of depth / 2 such pairs is twice as dense.
typedef int32_t Pair;
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// What products of T are summed in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, Pair>, float, T>;

template <class T>
LEWEL_INLINE void add_product(Vec<Sum<T>>& sum, Vec<T> left, Vec<T> right) {
  if constexpr (!std::is_same_v<T, Pair>) {
    sum += left * right;
  } else {
#if defined(__AVX512BF16__)
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
#endif
  }
}

// Depth of one pass of the kernel.
constexpr int64_t kDepth = 256;

// The most terms of one running sum in E1. The rounding error of n terms in runs of b grows with sqrt(n b); that of
// PyTorch's convolution grows as if b were n / 2, and about 200 from n = 512 on.
inline int64_t run_of(int64_t depth) { return depth < 2 * kDepth ? kDepth / 2 : kDepth; }
// The same of a sum over positions, for maps x channels: PyTorch sums in runs of 15 to 50 where these are few, else of about
// 100.
inline int64_t run_of(int64_t maps, int64_t channels) { return std::min(maps, channels) > 16 ? kDepth / 2 : 16; }

// Rows is broadcast element by element, so its strides are free; the columns are whole vectors.
template <class T, int Rows, int Vectors>
void tile(int64_t depth, int64_t run, Left<T> a, Right<T> b, Sum<T>* c, int64_t c_row, bool accumulate) {
  constexpr int n = kLanes<T>;
  // The destination is often cold: fetch its lines while the sums are formed.
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) __builtin_prefetch(c + i * c_row + j * n, 1);
  do {
    Vec<Sum<T>> sum[Rows][Vectors] = {};
    const int64_t terms = std::min(depth, run);
    for (int64_t k = 0; k < terms; ++k) {
      Vec<T> right[Vectors];
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) right[j] = load(b.data + j * n);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Vec<T> left = splat(a.data[i * a.row]);
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) add_product<T>(sum[i][j], left, right[j]);
      }
      a.data += a.depth;
      b.data += b.depth;
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        Sum<T>* p = c + i * c_row + j * n;
        store(p, accumulate ? load(p) + sum[i][j] : sum[i][j]);
      }
    accumulate = true;
    depth -= run;
  } while (depth > 0);
}

template <class T>
using TileFunction = void (*)(int64_t, int64_t, Left<T>, Right<T>, Sum<T>*, int64_t, bool);

template <class T, int... I>
constexpr std::array<TileFunction<T>, sizeof...(I)> tile_table(std::integer_sequence<int, I...>) {
  return {tile<T, I / kTileVectors + 1, I % kTileVectors + 1>...};
}

// C is rows x columns (columns <= kPanel, rounded up to whole vectors in B and C) with row stride c_row. The depth is
// summed in runs of about the same length, `run` at the most.
template <class T>
void product(int64_t rows, int64_t columns, int64_t depth, Left<T> a, Right<T> b, Sum<T>* c, int64_t c_row,
             bool accumulate, int64_t run = kDepth) {
  static constexpr auto table = tile_table<T>(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
  const int64_t vectors = padded<T>(columns) / kLanes<T>;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  if (depth > run) {
    const int64_t runs = (depth + run - 1) / run;
    run = (depth + runs - 1) / runs;
  }
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = rows * t / tiles, height = rows * (t + 1) / tiles - begin;  // heights differ by one at most
    const TileFunction<T> multiply = table[(height - 1) * kTileVectors + vectors - 1];
    multiply(depth, run, {a.data + begin * a.row, a.row, a.depth}, b, c + begin * c_row, c_row, accumulate);
  }
}

}  // namespace lewel::cpu
