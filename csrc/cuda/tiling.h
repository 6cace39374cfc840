// How sizes are cut into tiles, blocks and parts: plain functions that a CPU can test, tests/cuda_tiling_test.cpp.
#pragma once

#include "cuda/device.h"

namespace lewel::cuda {

template <bool VALUE>
struct bool_constant {
  static constexpr bool value = VALUE;
};

LEWEL_HOST_DEVICE constexpr int64 ceil_div(int64 a, int64 b) { return (a + b - 1) / b; }

// Quotients of numbers below 2^31 by one divisor: a product and a shift, where a division takes twenty instructions.
struct Divider {
  uint32 divisor, multiplier;
  int shift;

  LEWEL_HOST_DEVICE static Divider of(int64 divisor) {
    int log = 0;
    while ((int64{1} << log) < divisor) ++log;
    const auto ceiling = ((1ull << (31 + log)) + divisor - 1) / divisor;  // at most 2^32 - 1, since 2^log < 2 divisor
    return {static_cast<uint32>(divisor), static_cast<uint32>(ceiling), 31 + log};
  }
  LEWEL_HOST_DEVICE int quotient(int x) const {
    return static_cast<int>((static_cast<unsigned long long>(static_cast<uint32>(x)) * multiplier) >> shift);
  }
};

// Offsets along an axis whose numbers lie at equal distances.
struct Strided {
  int64 stride;

  LEWEL_HOST_DEVICE int64 operator()(int i) const { return static_cast<uint32>(i) * stride; }
  // The same where 16 bytes may be moved at a time along this axis: the stride is 1.
  LEWEL_HOST_DEVICE int64 together(int i) const { return i; }
};

// Offsets of the R = N P positions of a batch of images (N, channels, P).
struct Rows {
  Divider positions;
  int64 image_stride, position_stride;

  LEWEL_HOST_DEVICE int64 operator()(int row) const {
    const int image = positions.quotient(row);
    return image * image_stride + (row - image * static_cast<int>(positions.divisor)) * position_stride;
  }
  LEWEL_HOST_DEVICE int64 together(int row) const {
    const int image = positions.quotient(row);
    return image * image_stride + (row - image * static_cast<int>(positions.divisor));
  }
};

// How many steps of a product have their tiles in shared memory, or on their way there. With a third, float64 would
// take more than the 99 KB of an sm_86.
template <class T>
LEWEL_HOST_DEVICE constexpr int stages_on(int arch) {
  return arch >= 80 && sizeof(T) < 8 ? 3 : 2;
}

// Numbers of the depth of a product that one step takes: 64 bytes.
template <class T>
constexpr int kDepth = 64 / static_cast<int>(sizeof(T));

// The sum over rows of dW is spread over about as many blocks as an H100 holds at once, two on each of its 132
// multiprocessors, each with some steps at least: every further part is written, and read by the second stage, as
// another (K, D) of accumulators.
struct Parts {
  int64 each;   // steps of a part
  int64 count;  // parts

  LEWEL_HOST_DEVICE static Parts of(int64 steps, int64 blocks_of_a_part) {
    constexpr int64 kBlocks = 2 * 132, kLeastSteps = 8;
    const int64 wanted = kBlocks / blocks_of_a_part;
    int64 each = ceil_div(steps, wanted < 1 ? 1 : wanted);
    each = each < kLeastSteps ? kLeastSteps : each;
    return {each, ceil_div(steps, each)};
  }
};

// Chunks of channels that a block of the pooling goes through, of `chunks` in a group. Its maps are weighed once for
// all of them, unless their positions come in tiles; but there must be enough blocks for an H100, which holds four on
// each of its 132 multiprocessors.
LEWEL_HOST_DEVICE constexpr int64 pool_chunks(int64 blocks, int64 chunks, bool tiled) {
  constexpr int64 kBlocks = 4 * 132, kMost = 8;
  const int64 wanted = tiled ? 1 : blocks * chunks / kBlocks;
  const int64 least = wanted < 1 ? 1 : wanted < kMost ? wanted : kMost;
  return least < chunks ? least : chunks;
}

// Whether 16 bytes may be moved at a time along a fast axis: they lie together, and start at multiples of 16.
LEWEL_HOST_DEVICE bool moves_wide(const void* data, int size, int64 fast_stride, int64 slow_stride, int64 slows,
                                  int64 outer_stride, int64 outers) {
  const int64 vector = 16 / size;
  return reinterpret_cast<unsigned long long>(data) % 16 == 0 && fast_stride == 1 &&
         (slows == 1 || slow_stride % vector == 0) && (outers == 1 || outer_stride % vector == 0);
}

}  // namespace lewel::cuda
