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

// Depth of one pass of the kernel. Longer sums are sums of partial sums, which also lowers their rounding error.
constexpr int64_t kDepth = 256;

// Rows is broadcast element by element, so its strides are free; the columns are whole vectors.
template <class T, int Rows, int Vectors>
void tile(int64_t depth, Left<T> a, Right<T> b, Sum<T>* c, int64_t c_row, bool accumulate) {
  constexpr int n = kLanes<T>;
  Vec<Sum<T>> sum[Rows][Vectors] = {};
  // The destination is often cold: fetch its lines while the sums are formed.
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) __builtin_prefetch(c + i * c_row + j * n, 1);
  for (int64_t k = 0; k < depth; ++k) {
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
}

template <class T>
using TileFunction = void (*)(int64_t, Left<T>, Right<T>, Sum<T>*, int64_t, bool);

template <class T, int... I>
constexpr std::array<TileFunction<T>, sizeof...(I)> tile_table(std::integer_sequence<int, I...>) {
  return {tile<T, I / kTileVectors + 1, I % kTileVectors + 1>...};
}

// C is rows x columns (columns <= kPanel, rounded up to whole vectors in B and C) with row stride c_row.
template <class T>
void product(int64_t rows, int64_t columns, int64_t depth, Left<T> a, Right<T> b, Sum<T>* c, int64_t c_row,
             bool accumulate) {
  static constexpr auto table = tile_table<T>(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
  const int64_t vectors = padded<T>(columns) / kLanes<T>;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = rows * t / tiles, height = rows * (t + 1) / tiles - begin;  // heights differ by one at most
    const TileFunction<T> run = table[(height - 1) * kTileVectors + vectors - 1];
    run(depth, {a.data + begin * a.row, a.row, a.depth}, b, c + begin * c_row, c_row, accumulate);
  }
}

}  // namespace lewel::cpu
