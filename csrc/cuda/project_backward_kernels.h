// The kernels of the backward of the projection, E10 and E11 of docs/math.md, and the sums of parts. Grids are in
// backward.h.
#pragma once

#include "cuda/destination.h"
#include "cuda/operands.h"
#include "cuda/product.h"

namespace lewel::cuda {

template <class T>
struct PixelsBackward {
  using A = Accumulator<T>;
  const T* d_heat;  // dM (R, K)
  Weight<T> weight;
  Images<T> pixels;  // (N, D, P), read for E11
  Affine<A> affine;
  Divider positions;
  Mixed d_pixels;  // (N, D, P) with these strides, or null where it is not wanted
  int64 d_image, d_channel, d_position;
  bool d_wide, d_planes;
  bool add;    // to the E6 of features that were projected too
  A* d_scale;  // (tiles, D), or null where neither is wanted
  A* d_shift;
  int R, K, D;
};

template <class T>
struct PixelsBackwardShape {
  static constexpr int kRows = 128, kColumns = sizeof(T) == 8 ? 64 : 128;
  using Sums = Product<T, kRows, kColumns, 4, 2>;
  static constexpr int kThreads = Sums::kThreads;
  using HeatTile = Tile<T, kRows, kDepth<T>, kThreads>;
  using WeightTile = Tile<T, kDepth<T>, kColumns, kThreads>;
  static constexpr int kStage = HeatTile::kNumbers + WeightTile::kNumbers;
  static constexpr int kParts = 4 * kColumns;  // of d_scale, and as many of d_shift

  LEWEL_HOST_DEVICE static constexpr int front(int stages) {
    const int moved = stages * kStage * sizeof(T), scratch = Sums::kScratch * sizeof(Accumulator<T>);
    return moved > scratch ? moved : scratch;
  }
  LEWEL_HOST_DEVICE static constexpr int bytes(int stages, bool affine) {
    return front(stages) + (affine ? 2 * kParts * sizeof(Accumulator<T>) : 0);
  }
};

// dX of E10, and E11.
template <class T, bool E0>
LEWEL_KERNEL(PixelsBackwardShape<T>::kThreads, (sizeof(T) == 8 ? 1 : 2))
pixels_bwd_kernel(const PixelsBackward<T> q) {
  using Shape = PixelsBackwardShape<T>;
  using Sums = typename Shape::Sums;
  using A = Accumulator<T>;
  constexpr int kStages = stages_on<T>(kArch);
  T* const memory = reinterpret_cast<T*>(shared_memory());
  A* const parts = reinterpret_cast<A*>(shared_memory() + Shape::front(kStages));  // [2, warps, columns]
  const int first_row = block_x() * Shape::kRows, first_column = block_y() * Shape::kColumns;
  const Source d_heat{
      Exact<T>{q.d_heat}, Strided{q.K}, Strided{1}, q.R, q.K, q.K % (16 / static_cast<int>(sizeof(T))) == 0};
  const Source weight{
      Exact<T>{q.weight.data}, Strided{q.weight.row}, Strided{q.weight.column}, q.K, q.D, q.weight.wide};
  const Destination d_pixels{
      q.d_pixels, Rows{q.positions, q.d_image, q.d_position}, Strided{q.d_channel}, q.R, q.D, q.d_wide, q.d_planes,
      q.add};
  typename Shape::HeatTile heat_tile;
  typename Shape::WeightTile weight_tile;
  Sums sums;
  sums.zero();
  pipeline<kStages>(
      static_cast<int>(ceil_div(q.K, kDepth<T>)),
      [&](int step, int stage) {
        T* const to = memory + stage * Shape::kStage;
        heat_tile.begin(d_heat, to, first_row, step * kDepth<T>);
        weight_tile.begin(weight, to + Shape::HeatTile::kNumbers, step * kDepth<T>, first_column);
      },
      [&](int step, int stage) {
        T* const to = memory + stage * Shape::kStage;
        heat_tile.end(d_heat, to, first_row, step * kDepth<T>);
        weight_tile.end(weight, to + Shape::HeatTile::kNumbers, step * kDepth<T>, first_column);
      },
      [&](int, int stage) {
        const T* const from = memory + stage * Shape::kStage;
        sums.template add<kDepth<T>, true, false>(from, Shape::HeatTile::kPitch, from + Shape::HeatTile::kNumbers,
                                                  Shape::WeightTile::kPitch);
      });

  constexpr int kEach = Sums::kWarpColumns / 32;  // columns of a lane
  A scale_sums[kEach] = {}, shift_sums[kEach] = {};
  sums.bands(reinterpret_cast<A*>(memory), [&](A* band, int row, int column) {
    if constexpr (E0) {
      const Rows rows{q.positions, q.pixels.image, q.pixels.position};
      constexpr int kTogether = 8;  // one by one, each load would wait for the memory
#pragma unroll
      for (int from = 0; from < 16; from += kTogether) {
        T x[kTogether][kEach];
#pragma unroll
        for (int e = 0; e < kTogether; ++e) {
          const int r = first_row + row + from + e;
          const int64 at = r < q.R ? rows(r) : 0;
#pragma unroll
          for (int c = 0; c < kEach; ++c) {
            const int d = first_column + column + lane() + 32 * c;
            x[e][c] = r < q.R && d < q.D ? q.pixels.data[at + d * q.pixels.channel] : T{};
          }
        }
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
          const int j = lane() + 32 * c, d = first_column + column + j;
          if (d >= q.D) continue;
          const A scale = q.affine.scale[d], shift = q.affine.shift[d];
#pragma unroll
          for (int e = 0; e < kTogether; ++e) {
            if (first_row + row + from + e >= q.R) continue;
            const A pixel = widen<A>(x[e][c]);
            A& sum = band[(from + e) * Sums::kScratchPitch + j];
            const A dy = pixel * scale + shift <= 0 ? A{0} : sum;  // NaN passes the gate, as in torch.relu
            scale_sums[c] += dy * pixel;
            shift_sums[c] += dy;
            sum = dy * scale;
          }
        }
      }
      warp_barrier();
    }
    if (q.d_pixels.data)
      write_band<T, Sums::kWarpColumns>(d_pixels, band, Sums::kScratchPitch, first_row + row, first_column + column);
  });
  if constexpr (!E0) return;
  if (!q.d_scale) return;
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
    const int at = Sums::warp_row() * Shape::kColumns + Sums::warp_column() * Sums::kWarpColumns + lane() + 32 * c;
    parts[at] = scale_sums[c];
    parts[Shape::kParts + at] = shift_sums[c];
  }
  block_barrier();
  for (int j = thread(); j < Shape::kColumns && first_column + j < q.D; j += Shape::kThreads) {
    A scale = 0, shift = 0;
    for (int w = 0; w < 4; ++w) {
      scale += parts[w * Shape::kColumns + j];
      shift += parts[Shape::kParts + w * Shape::kColumns + j];
    }
    const int64 at = static_cast<int64>(block_x()) * q.D + first_column + j;
    q.d_scale[at] = scale;
    q.d_shift[at] = shift;
  }
}

template <class T>
struct WeightBackward {
  using A = Accumulator<T>;
  const T* d_heat;   // dM (R, K)
  Images<T> pixels;  // (N, D, P)
  Divider positions;
  Affine<A> affine;
  A* d_weight;  // (parts, K, D), each part with these strides, or null where it is not wanted
  int64 d_row, d_column;
  bool d_wide;
  double* d_bias;  // (parts, K), or null where it is not wanted
  Parts parts;
  int R, K, D;
};

template <class T, int MAPS, bool PLANES>
struct WeightBackwardShape {
  static constexpr int kColumns = sizeof(T) == 8 ? 64 : 128, kRowWarps = MAPS / 32;
  using Sums = Product<T, MAPS, kColumns, kRowWarps, 8 / kRowWarps>;
  static constexpr int kThreads = Sums::kThreads;
  using HeatTile = Tile<T, kDepth<T>, MAPS, kThreads>;
  using PixelTile = Tile<T, PLANES ? kColumns : kDepth<T>, PLANES ? kDepth<T> : kColumns, kThreads>;
  static constexpr int kStage = HeatTile::kNumbers + PixelTile::kNumbers;

  LEWEL_HOST_DEVICE static constexpr int bytes(int stages) {
    const int moved = stages * kStage * sizeof(T), scratch = Sums::kScratch * sizeof(Accumulator<T>);
    return moved > scratch ? moved : scratch;
  }
};

// dW and db of E10, the first of two stages: a block has some maps, some channels of the pixels, and a part of the
// rows.
template <class T, int MAPS, bool PLANES, bool E0>
LEWEL_KERNEL((WeightBackwardShape<T, MAPS, PLANES>::kThreads), (sizeof(T) == 8 ? 1 : 2))
weight_bwd_kernel(const WeightBackward<T> q) {
  using Shape = WeightBackwardShape<T, MAPS, PLANES>;
  using Sums = typename Shape::Sums;
  using A = Accumulator<T>;
  constexpr int kStages = stages_on<T>(kArch);
  T* const memory = reinterpret_cast<T*>(shared_memory());
  const int first_column = block_x() * Shape::kColumns, first_map = block_y() * MAPS, part = block_z();
  const int steps = static_cast<int>(ceil_div(q.R, kDepth<T>)), first_step = static_cast<int>(part * q.parts.each);
  const int left = steps - first_step;
  const Source d_heat{
      Exact<T>{q.d_heat}, Strided{q.K}, Strided{1}, q.R, q.K, q.K % (16 / static_cast<int>(sizeof(T))) == 0};
  const auto pixels = rows_of<PLANES>(q.pixels, q.positions, q.R, q.D);
  const auto change = change_of<T, PLANES>(q.affine, bool_constant<E0>{});
  typename Shape::HeatTile heat_tile;
  typename Shape::PixelTile pixel_tile;
  Sums sums;
  sums.zero();
  double bias_sum = 0;
  pipeline<kStages>(
      left < q.parts.each ? left : static_cast<int>(q.parts.each),
      [&](int step, int stage) {
        T* const to = memory + stage * Shape::kStage;
        const int row = (first_step + step) * kDepth<T>;
        heat_tile.begin(d_heat, to, row, first_map);
        if (q.d_weight)
          pixel_tile.begin(pixels, to + Shape::HeatTile::kNumbers, PLANES ? first_column : row,
                           PLANES ? row : first_column, change);
      },
      [&](int step, int stage) {
        T* const to = memory + stage * Shape::kStage;
        const int row = (first_step + step) * kDepth<T>;
        heat_tile.end(d_heat, to, row, first_map);
        if (q.d_weight)
          pixel_tile.end(pixels, to + Shape::HeatTile::kNumbers, PLANES ? first_column : row,
                         PLANES ? row : first_column, change);
      },
      [&](int, int stage) {
        const T* const heat = memory + stage * Shape::kStage;
        if (q.d_weight)
          sums.template add<kDepth<T>, false, PLANES>(heat, Shape::HeatTile::kPitch, heat + Shape::HeatTile::kNumbers,
                                                      Shape::PixelTile::kPitch);
        if (q.d_bias && block_x() == 0 && thread() < MAPS) {
          A sum = 0;
#pragma unroll
          for (int i = 0; i < kDepth<T>; ++i) sum += widen<A>(heat[i * Shape::HeatTile::kPitch + thread()]);
          bias_sum += sum;
        }
      });
  if (q.d_weight) {
    const Mixed part_of_it = Mixed{q.d_weight, kNumber<A>}.after(static_cast<int64>(part) * q.K * q.D);
    const Destination d_weight{part_of_it, Strided{q.d_row}, Strided{q.d_column},  q.K,
                               q.D,        q.d_wide,         q.d_row < q.d_column, false};
    sums.bands(reinterpret_cast<A*>(memory), [&](const A* band, int row, int column) {
      write_band<A, Sums::kWarpColumns>(d_weight, band, Sums::kScratchPitch, first_map + row, first_column + column);
    });
  }
  const int k = first_map + thread();
  if (q.d_bias && block_x() == 0 && thread() < MAPS && k < q.K) q.d_bias[static_cast<int64>(part) * q.K + k] = bias_sum;
}

constexpr int kSumThreads = 256;

// The second stage: parts (count, size) summed over count in order, in float64.
template <class Part>
LEWEL_KERNEL(kSumThreads)
sum_kernel(const Part* parts, const Mixed to, int count, int64 size) {
  const int64 i = static_cast<int64>(block_x()) * kSumThreads + thread();
  if (i >= size) return;
  double sum = 0;
  for (int part = 0; part < count; ++part) sum += parts[part * size + i];
  to.set(i, sum);
}

}  // namespace lewel::cuda
