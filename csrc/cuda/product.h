// Products of two tiles in shared memory, summed in registers.
#pragma once

#include "cuda/tile.h"

namespace lewel::cuda {

// The part of a product that a warp computes, ROWS x COLUMNS, by the instructions that there are for T. All have
//   add<DEPTH, LEFT_FAST, RIGHT_FAST>(left, left_pitch, right, right_pitch)
//     where the depth is the fast axis of the left tile, (rows, depth), or its slow one, (depth, rows); and likewise of
//     the right tile, (columns, depth) or (depth, columns)
//   band(scratch, pitch, i): rows 16 i to 16 i + 15 to memory of this warp

// Tensor cores of sm_80 and later.
template <class T, int ROWS, int COLUMNS>
class TensorProduct {
 public:
  LEWEL_DEVICE void zero() {
#pragma unroll
    for (auto& row : sums_)
#pragma unroll
      for (auto& sum : row)
#pragma unroll
        for (float& x : sum) x = 0;
  }

  template <int DEPTH, bool LEFT_FAST, bool RIGHT_FAST>
  LEWEL_DEVICE void add(const T* left, int left_pitch, const T* right, int right_pitch) {
    // This lane gives the address of row `row` of the matrix in half `low` along the first index, `high` along the
    // second.
    const int row = lane() % 8, low = lane() / 8 % 2 * 8, high = lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      uint32 a[ROWS / 16][4], b[COLUMNS / 8][2];
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i) {
        if constexpr (LEFT_FAST)
          load_matrices(a[i], left + (16 * i + low + row) * left_pitch + k + high, false);
        else
          load_matrices(a[i], left + (k + high + row) * left_pitch + 16 * i + low, true);
      }
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) {
        uint32 two[4];
        if constexpr (RIGHT_FAST)
          load_matrices(two, right + (16 * j + high + row) * right_pitch + k + low, false);
        else
          load_matrices(two, right + (k + low + row) * right_pitch + 16 * j + high, true);
        b[2 * j][0] = two[0], b[2 * j][1] = two[1], b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
      }
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) multiply_add(sums_[i][j], a[i], b[j], T{});
    }
  }

  LEWEL_DEVICE void band(float* scratch, int pitch, int i) const {
    const int row = lane() / 4, column = lane() % 4 * 2;
#pragma unroll
    for (int b = 0; b < ROWS / 16; ++b) {
      if (b != i) continue;  // unrolled: registers have no index
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j) {
        float* to = scratch + row * pitch + 8 * j + column;
        to[0] = sums_[b][j][0], to[1] = sums_[b][j][1];
        to[8 * pitch] = sums_[b][j][2], to[8 * pitch + 1] = sums_[b][j][3];
      }
    }
  }

 private:
  float sums_[ROWS / 16][COLUMNS / 8][4];
};

// Tensor cores of sm_70.
template <int ROWS, int COLUMNS>
class VoltaProduct {
 public:
  LEWEL_DEVICE void zero() {
#pragma unroll
    for (auto& row : sums_)
#pragma unroll
      for (auto& sum : row)
#pragma unroll
        for (float& x : sum.values) x = 0;
  }

  template <int DEPTH, bool LEFT_FAST, bool RIGHT_FAST>
  LEWEL_DEVICE void add(const Half* left, int left_pitch, const Half* right, int right_pitch) {
#pragma unroll 1  // the next operands would not find registers
    for (int k = 0; k < DEPTH; k += 16) {
      Operand a[ROWS / 16];
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i)
        load_left<!LEFT_FAST>(a[i], LEFT_FAST ? left + 16 * i * left_pitch + k : left + k * left_pitch + 16 * i,
                              left_pitch);
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) {
        Operand b;
        load_right<RIGHT_FAST>(b, RIGHT_FAST ? right + 16 * j * right_pitch + k : right + k * right_pitch + 16 * j,
                               right_pitch);
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) multiply_add<!LEFT_FAST, RIGHT_FAST>(sums_[i][j], a[i], b);
      }
    }
  }

  LEWEL_DEVICE void band(float* scratch, int pitch, int i) const {
#pragma unroll
    for (int b = 0; b < ROWS / 16; ++b) {
      if (b != i) continue;
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) store_sum(scratch + 16 * j, sums_[b][j], pitch);
    }
  }

 private:
  Sum sums_[ROWS / 16][COLUMNS / 16];
};

// No tensor cores: float32 as IEEE says, and float64. A lane has every fourth row and every eighth column.
template <class T, int ROWS, int COLUMNS>
class PlainProduct {
  using A = Accumulator<T>;

 public:
  LEWEL_DEVICE void zero() {
#pragma unroll
    for (auto& row : sums_)
#pragma unroll
      for (A& x : row) x = 0;
  }

  template <int DEPTH, bool LEFT_FAST, bool RIGHT_FAST>
  LEWEL_DEVICE void add(const T* left, int left_pitch, const T* right, int right_pitch) {
    const int row = lane() / 8, column = lane() % 8;
#pragma unroll 2
    for (int k = 0; k < DEPTH; ++k) {
      A a[ROWS / 4], b[COLUMNS / 8];
#pragma unroll
      for (int i = 0; i < ROWS / 4; ++i)
        a[i] = widen<A>(LEFT_FAST ? left[(row + 4 * i) * left_pitch + k] : left[k * left_pitch + row + 4 * i]);
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j)
        b[j] =
            widen<A>(RIGHT_FAST ? right[(column + 8 * j) * right_pitch + k] : right[k * right_pitch + column + 8 * j]);
#pragma unroll
      for (int i = 0; i < ROWS / 4; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) sums_[i][j] += a[i] * b[j];
    }
  }

  // Adds the sums to those set aside before, and starts anew; `recall` adds those back.
  template <int THREADS>
  LEWEL_DEVICE void set_aside(A* others, bool first) {
#pragma unroll
    for (int i = 0; i < ROWS / 4; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j) {
        A& other = others[(i * (COLUMNS / 8) + j) * THREADS + thread()];
        other = first ? sums_[i][j] : other + sums_[i][j];
        sums_[i][j] = 0;
      }
  }
  template <int THREADS>
  LEWEL_DEVICE void recall(const A* others) {
#pragma unroll
    for (int i = 0; i < ROWS / 4; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; ++j) sums_[i][j] += others[(i * (COLUMNS / 8) + j) * THREADS + thread()];
  }

  LEWEL_DEVICE void band(A* scratch, int pitch, int i) const {
    const int row = lane() / 8, column = lane() % 8;
#pragma unroll
    for (int b = 0; b < ROWS / 16; ++b) {
      if (b != i) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) scratch[(row + 4 * r) * pitch + column + 8 * j] = sums_[4 * b + r][j];
    }
  }

 private:
  A sums_[ROWS / 4][COLUMNS / 8];
};

template <class T, int ROWS, int COLUMNS, int ARCH>
struct WarpProductOf {
  using type = PlainProduct<T, ROWS, COLUMNS>;  // bfloat16 on sm_70 too, which the backend refuses: too slow
};
template <int ROWS, int COLUMNS>
struct WarpProductOf<Half, ROWS, COLUMNS, 70> {
  using type = VoltaProduct<ROWS, COLUMNS>;
};
template <int ROWS, int COLUMNS>
struct WarpProductOf<Half, ROWS, COLUMNS, 80> {
  using type = TensorProduct<Half, ROWS, COLUMNS>;
};
template <int ROWS, int COLUMNS>
struct WarpProductOf<BFloat16, ROWS, COLUMNS, 80> {
  using type = TensorProduct<BFloat16, ROWS, COLUMNS>;
};

// A product of the tiles of a block, ROWS x COLUMNS, shared out among WARPS_R x WARPS_C warps.
template <class T, int ROWS, int COLUMNS, int WARPS_R, int WARPS_C>
class Product {
  static constexpr int kRows = ROWS / WARPS_R, kColumns = COLUMNS / WARPS_C;
  using A = Accumulator<T>;

 public:
  static constexpr int kThreads = 32 * WARPS_R * WARPS_C;
  // Of the memory in which a warp lays down 16 of its rows.
  static constexpr int kScratchPitch = kColumns + 4;
  static constexpr int kScratch = WARPS_R * WARPS_C * 16 * kScratchPitch;
  static constexpr int kWarpColumns = kColumns;

  LEWEL_DEVICE static int warp_row() { return warp() / WARPS_C; }
  LEWEL_DEVICE static int warp_column() { return warp() % WARPS_C; }

  LEWEL_DEVICE void zero() { part_.zero(); }

  // += left right, of DEPTH numbers; orders as in the products of warps.
  template <int DEPTH, bool LEFT_FAST, bool RIGHT_FAST>
  LEWEL_DEVICE void add(const T* left, int left_pitch, const T* right, int right_pitch) {
    const int row = warp_row() * kRows, column = warp_column() * kColumns;
    part_.template add<DEPTH, LEFT_FAST, RIGHT_FAST>(left + row * (LEFT_FAST ? left_pitch : 1), left_pitch,
                                                     right + column * (RIGHT_FAST ? right_pitch : 1), right_pitch);
  }

  // A float32 that is added to a large sum loses digits: the sums of so many steps are set aside, and added up apart.
  static constexpr int kStepsAtOnce = 256 / kDepth<T>;
  static constexpr bool kSetsAside = sizeof(T) == 4;
  static constexpr int kAside = kSetsAside ? ROWS * COLUMNS : 0;  // accumulators of shared memory
  LEWEL_DEVICE void set_aside(A* aside, int step) {
    if constexpr (kSetsAside)
      if (step % kStepsAtOnce == kStepsAtOnce - 1) part_.template set_aside<kThreads>(aside, step < kStepsAtOnce);
  }
  LEWEL_DEVICE void recall(const A* aside, int steps) {
    if constexpr (kSetsAside)
      if (steps >= kStepsAtOnce) part_.template recall<kThreads>(aside);
  }

  // Calls use(sums, row, column) for each 16 rows of each warp: number (i, j) of sums[i * kScratchPitch + j] is number
  // (row + i, column + j) of the product. scratch: kScratch accumulators that no other warp uses meanwhile.
  template <class Use>
  LEWEL_DEVICE void bands(A* scratch, Use use) const {
    A* own = scratch + warp() * 16 * kScratchPitch;
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      part_.band(own, kScratchPitch, i);
      warp_barrier();
      use(own, warp_row() * kRows + 16 * i, warp_column() * kColumns);
      warp_barrier();
    }
  }

 private:
  typename WarpProductOf<T, kRows, kColumns, kArch>::type part_;
};

}  // namespace lewel::cuda
