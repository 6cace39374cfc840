// The kernels of the forward, E0-E5 of docs/math.md. Grids are in forward.h.
#pragma once

#include "cuda/destination.h"
#include "cuda/maps.h"
#include "cuda/operands.h"

namespace lewel::cuda {

template <class T>
struct Project {
  using A = Accumulator<T>;
  Images<T> pixels;  // (N, D, P)
  Divider positions;
  Weight<T> weight;
  const T* bias;  // (K,), may be null
  int64 bias_stride;
  Affine<A> affine;
  T* heat;  // (R, K)
  A* norm;  // (R,)
  int R, D, K;
};

template <class T, int MAPS, bool PLANES>
struct ProjectShape {
  static constexpr int kRows = 64, kColumnWarps = MAPS > 128 ? 4 : 2;
  using Sums = Product<T, kRows, MAPS, 2, kColumnWarps>;
  static constexpr int kThreads = Sums::kThreads;
  using PixelTile = Tile<T, PLANES ? kDepth<T> : kRows, PLANES ? kRows : kDepth<T>, kThreads>;
  using WeightTile = Tile<T, MAPS, kDepth<T>, kThreads>;
  static constexpr int kStage = PixelTile::kNumbers + WeightTile::kNumbers;
  static constexpr int kSquares = kRows * kColumnWarps;

  LEWEL_HOST_DEVICE static constexpr int front(int stages) {
    const int moved = stages * kStage * sizeof(T), scratch = Sums::kScratch * sizeof(Accumulator<T>);
    return moved > scratch ? moved : scratch;
  }
  LEWEL_HOST_DEVICE static constexpr int bytes(int stages, int64 D) {
    const int aside = ceil_div(D, kDepth<T>) < Sums::kStepsAtOnce ? 0 : Sums::kAside;
    return front(stages) + (kSquares + aside) * sizeof(Accumulator<T>);
  }
};

// E1 and the norms of E2: a block has a tile of rows and goes through all K maps, so that the norm is at hand at its
// end.
template <class T, int MAPS, bool PLANES, bool E0>
LEWEL_KERNEL((ProjectShape<T, MAPS, PLANES>::kThreads), (sizeof(T) == 8 ? 2
                                                         : MAPS <= 128  ? 3
                                                         : kArch >= 80  ? 2
                                                                        : 1))
project_kernel(const Project<T> q) {
  using Shape = ProjectShape<T, MAPS, PLANES>;
  using Sums = typename Shape::Sums;
  using A = Accumulator<T>;
  constexpr int kStages = stages_on<T>(kArch), kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kLanes = Sums::kWarpColumns / kVector;  // that write a row of 16 bytes each
  T* const memory = reinterpret_cast<T*>(shared_memory());
  A* const squares = reinterpret_cast<A*>(shared_memory() + Shape::front(kStages));  // [rows, warps]
  A* const aside = squares + Shape::kSquares;
  const int first_row = block_x() * Shape::kRows, steps = static_cast<int>(ceil_div(q.D, kDepth<T>));
  const auto pixels = rows_of<PLANES>(q.pixels, q.positions, q.R, q.D);
  const Source weight{
      Exact<T>{q.weight.data}, Strided{q.weight.row}, Strided{q.weight.column}, q.K, q.D, q.weight.wide};
  const auto change = change_of<T, PLANES>(q.affine, bool_constant<E0>{});
  typename Shape::PixelTile pixel_tile;
  typename Shape::WeightTile weight_tile;
  for (int i = thread(); i < Shape::kSquares; i += Shape::kThreads) squares[i] = 0;

  for (int first_map = 0; first_map < q.K; first_map += MAPS) {  // once, unless K is large
    Sums sums;
    sums.zero();
    block_barrier();
    pipeline<kStages>(
        steps,
        [&](int step, int stage) {
          T* const to = memory + stage * Shape::kStage;
          const int d = step * kDepth<T>;
          pixel_tile.begin(pixels, to, PLANES ? d : first_row, PLANES ? first_row : d, change);
          weight_tile.begin(weight, to + Shape::PixelTile::kNumbers, first_map, d);
        },
        [&](int step, int stage) {
          T* const to = memory + stage * Shape::kStage;
          const int d = step * kDepth<T>;
          pixel_tile.end(pixels, to, PLANES ? d : first_row, PLANES ? first_row : d, change);
          weight_tile.end(weight, to + Shape::PixelTile::kNumbers, first_map, d);
        },
        [&](int step, int stage) {
          const T* const from = memory + stage * Shape::kStage;
          sums.template add<kDepth<T>, !PLANES, true>(from, Shape::PixelTile::kPitch, from + Shape::PixelTile::kNumbers,
                                                      Shape::WeightTile::kPitch);
          sums.set_aside(aside, step);
        });
    sums.recall(aside, steps);
    sums.bands(reinterpret_cast<A*>(memory), [&](const A* band, int row, int column) {
#pragma unroll
      for (int v = lane(); v < 16 * kLanes; v += 32) {
        const int i = v / kLanes, j = v % kLanes * kVector, r = first_row + row + i, k = first_map + column + j;
        alignas(16) T numbers[kVector];
        A square = 0;
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          A m = band[i * Sums::kScratchPitch + j + e];
          if (q.bias && k + e < q.K) m += widen<A>(q.bias[(k + e) * q.bias_stride]);
          numbers[e] = rounded<T>(m);
          const A heat = widen<A>(numbers[e]);
          square += heat * heat;  // maps beyond K are zero
        }
        if (r < q.R) {
          T* const to = q.heat + static_cast<int64>(r) * q.K + k;
          if (q.K % kVector == 0 && k < q.K) {
            *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(numbers);
          } else {
#pragma unroll
            for (int e = 0; e < kVector; ++e)
              if (k + e < q.K) to[e] = numbers[e];
          }
        }
#pragma unroll
        for (int mask = kLanes / 2; mask > 0; mask /= 2) square += shuffle_xor(square, mask);
        if (j == 0) squares[(row + i) * Shape::kColumnWarps + Sums::warp_column()] += square;
      }
    });
  }
  block_barrier();
  for (int i = thread(); i < Shape::kRows; i += Shape::kThreads) {
    A square = 0;
    for (int w = 0; w < Shape::kColumnWarps; ++w) square += squares[i * Shape::kColumnWarps + w];
    if (first_row + i < q.R) q.norm[first_row + i] = square_root(square);
  }
}

struct SoftmaxShape {
  static constexpr int kMaps = 32, kParts = 8, kThreads = kMaps * kParts;
  template <class A>
  LEWEL_HOST_DEVICE static constexpr int bytes() {
    return 2 * kThreads * sizeof(A);
  }
};

// What E4 needs to know of all positions, for blocks of maps of an image.
template <class T>
LEWEL_KERNEL(SoftmaxShape::kThreads)
softmax_kernel(const HeatMaps<T> q, const Softmax<Accumulator<T>> to) {
  using A = Accumulator<T>;
  A* const tops = reinterpret_cast<A*>(shared_memory());
  A* const sums = tops + SoftmaxShape::kThreads;
  const int k = block_y() * SoftmaxShape::kMaps + thread() % SoftmaxShape::kMaps, part = thread() / SoftmaxShape::kMaps;
  const int64 image = block_x();
  A top = -infinity(), sum = 0;
  if (k < q.K) {
    for (int p = part; p < q.P; p += SoftmaxShape::kParts) {
      const A u = q.unit(image * q.P + p, k), above = larger(top, u);
      sum = (above > top ? sum * q.weight(top, above) : sum) + q.weight(u, above);
      top = above;
    }
  }
  tops[thread()] = top;
  sums[thread()] = sum;
  block_barrier();
  if (k < q.K && part == 0) {
    for (int i = 1; i < SoftmaxShape::kParts; ++i) top = larger(top, tops[thread() + i * SoftmaxShape::kMaps]);
    A total = 0;
    for (int i = 0; i < SoftmaxShape::kParts; ++i) {
      const int at = thread() + i * SoftmaxShape::kMaps;
      total += sums[at] * (tops[at] == top ? A{1} : q.weight(tops[at], top));
    }
    to.top[image * q.K + k] = top;
    to.inverse[image * q.K + k] = 1 / total;
  }
}

template <class T>
struct Pool {
  Images<T> features;  // (N, C, P)
  HeatMaps<T> maps;
  Softmax<Accumulator<T>> softmax;  // null where one tile holds all positions
  Mixed pooled;                     // (N, L, C), contiguous
  bool pooled_wide;
  int C, width, L;  // width: channels of a group
  int chunks;       // of channels that a block goes through
};

template <class T, int MAPS, bool PLANES>
struct PoolShape {
  using Maps = GroupMaps<T, MAPS>;
  static constexpr int kThreads = Maps::kThreads, kPositions = Maps::kPositions, kChannels = kPooledChannels<T>;
  using Sums = Product<T, MAPS, kChannels, MAPS / 32, 4 / (MAPS / 32)>;
  static_assert(Sums::kThreads == kThreads);
  using FeatureTile = Tile<T, PLANES ? kChannels : kPositions, PLANES ? kPositions : kChannels, kThreads>;

  LEWEL_HOST_DEVICE static constexpr int bytes(int stages) {
    return (stages * FeatureTile::kNumbers + Maps::kNumbers) * sizeof(T) +
           (Sums::kScratch + Maps::kSums) * sizeof(Accumulator<T>);
  }
};

// E2-E5: a block has an image, up to MAPS maps of a group, and some chunks of the group's channels.
template <class T, int MAPS, bool PLANES>
LEWEL_KERNEL((PoolShape<T, MAPS, PLANES>::kThreads), (sizeof(T) == 8 ? 2 : 4))
pool_kernel(const Pool<T> q) {
  using Shape = PoolShape<T, MAPS, PLANES>;
  using Sums = typename Shape::Sums;
  using A = Accumulator<T>;
  constexpr int kStages = stages_on<T>(kArch);
  T* const stages = reinterpret_cast<T*>(shared_memory());
  T* const weights = stages + kStages * Shape::FeatureTile::kNumbers;  // [positions, maps]
  A* const scratch = reinterpret_cast<A*>(weights + Shape::Maps::kNumbers);
  const int blocks = static_cast<int>(ceil_div(q.L, MAPS)), image = block_x(), group = block_y() / blocks;
  const int first_map = block_y() % blocks * MAPS, first_chunk = block_z() * q.chunks;
  const int tiles = static_cast<int>(ceil_div(q.maps.P, Shape::kPositions));
  const int all_chunks = static_cast<int>(ceil_div(q.width, Shape::kChannels)), left = all_chunks - first_chunk;
  const auto features = group_of<PLANES>(q.features, image, static_cast<int64>(group) * q.width, q.maps.P, q.width);
  // R of these maps and the group's channels.
  const int64 before = (static_cast<int64>(image) * q.L + first_map) * q.C + static_cast<int64>(group) * q.width;
  const Destination pooled{q.pooled.after(before), Strided{q.C}, Strided{1}, q.L - first_map, q.width,
                           q.pooled_wide,          false,        false};
  typename Shape::FeatureTile tile;
  typename Shape::Maps maps(q.maps, image, group * q.L + first_map, q.L - first_map);
  Sums sums;
  sums.zero();

  // Steps: the tiles of positions of a chunk of channels, chunk after chunk.
  const auto move = [&](int step, int stage, auto how) {
    const int channel = (first_chunk + step / tiles) * Shape::kChannels, position = step % tiles * Shape::kPositions;
    how(stages + stage * Shape::FeatureTile::kNumbers, PLANES ? channel : position, PLANES ? position : channel);
  };
  bool known = false;
  pipeline<kStages>((left < q.chunks ? left : q.chunks) * tiles,
                    [&](int step, int stage) {
                      move(step, stage, [&](T* to, int slow, int fast) { tile.begin(features, to, slow, fast); });
                    },
                    [&](int step, int stage) {
                      move(step, stage, [&](T* to, int slow, int fast) { tile.end(features, to, slow, fast); });
                    },
                    [&](int step, int stage) {
                      if (!known) q.softmax.top ? maps.load(q.softmax, image) : maps.reduce(scratch + Sums::kScratch);
                      if (!known || tiles > 1) {
                        maps.write(weights, step % tiles * Shape::kPositions);
                        block_barrier();
                      }
                      known = true;
                      sums.template add<Shape::kPositions, false, PLANES>(weights, Shape::Maps::kPitch,
                                                                          stages + stage * Shape::FeatureTile::kNumbers,
                                                                          Shape::FeatureTile::kPitch);
                      if (step % tiles == tiles - 1) {
                        const int channel = (first_chunk + step / tiles) * Shape::kChannels;
                        sums.bands(scratch, [&](const A* band, int row, int column) {
                          write_band<T, Sums::kWarpColumns>(pooled, band, Sums::kScratchPitch, row, channel + column);
                        });
                        sums.zero();
                      }
                    });
}

struct MapsShape {
  static constexpr int kSide = 32, kThreads = 256;
  template <class A>
  LEWEL_HOST_DEVICE static constexpr int bytes() {
    return kSide * (kSide + 1) * sizeof(A);
  }
};

// E4 written out (N, K, P), for who asks for the maps: heat maps lie in rows, so 32 x 32 numbers change sides at a
// time.
template <class T>
LEWEL_KERNEL(MapsShape::kThreads)
maps_kernel(const HeatMaps<T> q, const Softmax<Accumulator<T>> softmax, const Mixed maps) {
  using A = Accumulator<T>;
  constexpr int kSide = MapsShape::kSide;
  A* const side = reinterpret_cast<A*>(shared_memory());
  const int tiles = static_cast<int>(ceil_div(q.P, kSide)), p = block_x() % tiles * kSide, k = block_y() * kSide;
  const int64 image = block_x() / tiles;
  for (int e = thread(); e < kSide * kSide; e += MapsShape::kThreads) {
    const int i = e / kSide, j = e % kSide;
    if (p + i >= q.P || k + j >= q.K) continue;
    const int64 at = image * q.K + k + j;
    side[i * (kSide + 1) + j] = q.weight(q.unit(image * q.P + p + i, k + j), softmax.top[at]) * softmax.inverse[at];
  }
  block_barrier();
  for (int e = thread(); e < kSide * kSide; e += MapsShape::kThreads) {
    const int j = e / kSide, i = e % kSide;
    if (p + i < q.P && k + j < q.K) maps.set((image * q.K + k + j) * q.P + p + i, side[i * (kSide + 1) + j]);
  }
}

}  // namespace lewel::cuda
