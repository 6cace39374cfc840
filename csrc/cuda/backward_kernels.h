// The kernels of the backward, E6-E11 of docs/math.md. Grids are in backward.h.
#pragma once

#include "cuda/forward_kernels.h"

namespace lewel::cuda {

template <class T>
struct PoolBackward {
  using A = Accumulator<T>;
  Images<T> features;  // (N, C, P)
  HeatMaps<T> maps;
  Softmax<A> softmax;   // written where one tile holds all positions, else read
  Mixed grad_pooled;    // (N, L, C) with these strides
  int64 grad_image, grad_l, grad_channel;
  bool grad_wide;       // of T, and 16 bytes may be loaded at a time along channels
  Mixed grad_maps;      // (N, K, P) with these strides, or null: the gradient of the maps that were returned
  int64 grad_maps_image, grad_maps_map, grad_maps_position;
  Mixed d_features;     // (N, C, P) with these strides, or null where it is not wanted
  int64 d_image, d_channel, d_position;
  bool d_wide, d_planes;
  A* d_maps;            // dA (R, K), or null where nothing of the projection is wanted
  A* delta;             // (tiles, N, K)
  int N, C, width, L;
};

template <class T, int MAPS, bool PLANES>
struct PoolBackwardShape {
  using Maps = GroupMaps<T, MAPS>;
  static constexpr int kThreads = Maps::kThreads, kPositions = Maps::kPositions, kChannels = kPooledChannels<T>;
  using FeatureSums = Product<T, kPositions, kChannels, 2, 2>;
  using MapSums = Product<T, kPositions, MAPS, 2, 2>;
  static_assert(FeatureSums::kThreads == kThreads && MapSums::kThreads == kThreads);
  using FeatureTile = Tile<T, PLANES ? kChannels : kPositions, PLANES ? kPositions : kChannels, kThreads>;
  using GradTile = Tile<T, MAPS, kChannels, kThreads>;
  static constexpr int kStage = FeatureTile::kNumbers + GradTile::kNumbers;
  static constexpr int kMapPitch = MAPS + 1;
  static constexpr int kScratch = FeatureSums::kScratch > MapSums::kScratch ? FeatureSums::kScratch : MapSums::kScratch;

  LEWEL_HOST_DEVICE static constexpr int front(int stages) {  // tiles on their way, and then dA
    const int moved = stages * kStage * sizeof(T), maps = kPositions * kMapPitch * sizeof(Accumulator<T>);
    return ((moved > maps ? moved : maps) + 127) / 128 * 128;
  }
  LEWEL_HOST_DEVICE static constexpr int bytes(int stages) {
    return front(stages) + Maps::kNumbers * sizeof(T) +
           (kScratch + Maps::kSums) * sizeof(Accumulator<T>);
  }
};

// E6, E7 and the delta of E8 in one pass over features and dR: a block has an image, a tile of its positions, and a group.
// With more than MAPS maps in a group there are two launches: one for E7 and delta, a block for each MAPS maps; and one
// for E6, where a block goes through all maps of the group for each chunk of channels.
template <class T, int MAPS, bool PLANES>
LEWEL_KERNEL((PoolBackwardShape<T, MAPS, PLANES>::kThreads), (sizeof(T) == 8 ? 2 : MAPS > 32 && kArch < 80 ? 1 : 3))
pool_bwd_kernel(const PoolBackward<T> q) {
  using Shape = PoolBackwardShape<T, MAPS, PLANES>;
  using FeatureSums = typename Shape::FeatureSums;
  using MapSums = typename Shape::MapSums;
  using Maps = typename Shape::Maps;
  using A = Accumulator<T>;
  constexpr int kStages = stages_on<T>(kArch);
  T* const stages = reinterpret_cast<T*>(shared_memory());
  T* const weights = reinterpret_cast<T*>(shared_memory() + Shape::front(kStages));  // [positions, maps]
  A* const scratch = reinterpret_cast<A*>(weights + Maps::kNumbers);
  A* const reduced = scratch + Shape::kScratch;
  const int P = q.maps.P, tiles = static_cast<int>(ceil_div(P, Shape::kPositions));
  const int image = block_x() / tiles, first_position = block_x() % tiles * Shape::kPositions;
  // Blocks of maps: one for each block of threads where dA is wanted, else all of them one after the other.
  const int all_blocks = static_cast<int>(ceil_div(q.L, MAPS)), blocks = q.d_maps ? 1 : all_blocks;
  const int group = block_y() / (q.d_maps ? all_blocks : 1);
  const int first_block = q.d_maps ? block_y() % all_blocks : 0;
  const auto features = group_of<PLANES>(q.features, image, static_cast<int64>(group) * q.width, P, q.width);
  const int64 channels_before = static_cast<int64>(group) * q.width;
  const Source grads{
      Converted<T>{q.grad_pooled.after(image * q.grad_image + channels_before * q.grad_channel)}, Strided{q.grad_l},
      Strided{q.grad_channel}, q.L, q.width, q.grad_wide};
  const Destination d_features{q.d_features.after(image * q.d_image + channels_before * q.d_channel),
                               Strided{q.d_position}, Strided{q.d_channel}, P, q.width, q.d_wide, q.d_planes, false};
  typename Shape::FeatureTile feature_tile;
  typename Shape::GradTile grad_tile;
  FeatureSums feature_sums;
  MapSums map_sums;
  feature_sums.zero();
  map_sums.zero();

  const auto write_weights = [&](int block, bool first) {
    Maps maps(q.maps, image, group * q.L + block * MAPS, q.L - block * MAPS);
    if (tiles > 1 || !first) maps.load(q.softmax, image);
    else maps.reduce(reduced);
    maps.write(weights, first_position);
    if (first && tiles == 1 && q.d_maps && maps.part() == 0 && maps.present()) {
      const int64 at = static_cast<int64>(image) * q.maps.K + maps.k();
      q.softmax.top[at] = maps.top();
      q.softmax.inverse[at] = maps.inverse();
    }
    block_barrier();
  };
  bool known = false;

  // Steps: the blocks of maps of a chunk of channels, chunk after chunk.
  const auto move = [&](int step, int stage, auto feature, auto grad) {
    T* const to = stages + stage * Shape::kStage;
    const int channel = step / blocks * Shape::kChannels;
    if (q.d_maps) feature(to, PLANES ? channel : first_position, PLANES ? first_position : channel);
    grad(to + Shape::FeatureTile::kNumbers, (first_block + step % blocks) * MAPS, channel);
  };
  pipeline<kStages>(
      static_cast<int>(ceil_div(q.width, Shape::kChannels)) * blocks,
      [&](int step, int stage) {
        move(step, stage, [&](T* to, int slow, int fast) { feature_tile.begin(features, to, slow, fast); },
             [&](T* to, int slow, int fast) { grad_tile.begin(grads, to, slow, fast); });
      },
      [&](int step, int stage) {
        move(step, stage, [&](T* to, int slow, int fast) { feature_tile.end(features, to, slow, fast); },
             [&](T* to, int slow, int fast) { grad_tile.end(grads, to, slow, fast); });
      },
      [&](int step, int stage) {
        const T* const feature = stages + stage * Shape::kStage;
        const T* const grad = feature + Shape::FeatureTile::kNumbers;
        if (blocks > 1)
          write_weights(step % blocks, tiles == 1 && q.softmax.top == nullptr);
        else if (!known)  // the first tiles are on their way
          write_weights(first_block, true);
        known = true;
        if (q.d_maps)  // E7
          map_sums.template add<Shape::kChannels, !PLANES, true>(feature, Shape::FeatureTile::kPitch, grad,
                                                                 Shape::GradTile::kPitch);
        if (q.d_features.data) {  // E6
          feature_sums.template add<MAPS, true, false>(weights, Maps::kPitch, grad, Shape::GradTile::kPitch);
          if (step % blocks == blocks - 1) {
            const int channel = step / blocks * Shape::kChannels;
            feature_sums.bands(scratch, [&](const A* band, int row, int column) {
              write_band<T, FeatureSums::kWarpColumns>(d_features, band, FeatureSums::kScratchPitch,
                                                       first_position + row, channel + column);
            });
            feature_sums.zero();
          }
        }
      });
  if (!q.d_maps) return;

  A* const d_maps = reinterpret_cast<A*>(shared_memory());  // [positions, maps], where the tiles were
  map_sums.bands(scratch, [&](const A* band, int row, int column) {
    for (int e = lane(); e < 16 * MapSums::kWarpColumns; e += 32) {
      const int i = e / MapSums::kWarpColumns, j = e % MapSums::kWarpColumns;
      d_maps[(row + i) * Shape::kMapPitch + column + j] = band[i * MapSums::kScratchPitch + j];
    }
  });
  block_barrier();
  Maps maps(q.maps, image, group * q.L + first_block * MAPS, q.L - first_block * MAPS);
  maps.load(q.softmax, image);
  A delta = 0;
  maps.each_unit(first_position, [&](int j, A u) {
    const int i = maps.position(j), p = first_position + i;
    A x = d_maps[i * Shape::kMapPitch + maps.map()];
    if (q.grad_maps.data)
      x += q.grad_maps.template get<A>(image * q.grad_maps_image + maps.k() * q.grad_maps_map + p * q.grad_maps_position);
    q.d_maps[(static_cast<int64>(image) * P + p) * q.maps.K + maps.k()] = x;
    delta += maps.weight(u) * x;
  });
  reduced[thread()] = delta;
  block_barrier();
  if (maps.part() == 0 && maps.present()) {
    delta = 0;
#pragma unroll
    for (int i = 0; i < Maps::kParts; ++i) delta += reduced[i * MAPS + maps.map()];
    const int64 tile = first_position / Shape::kPositions;
    q.delta[(tile * q.N + image) * q.maps.K + maps.k()] = delta;
  }
}

template <class T>
struct MapsBackward {
  using A = Accumulator<T>;
  HeatMaps<T> maps;
  Softmax<A> softmax;
  const A* delta;   // (N, K)
  const A* d_maps;  // dA (R, K)
  T* d_heat;        // dM (R, K)
  Divider positions;
  A inverse_tau;
  int R;
};

constexpr int kMapsBackwardThreads = 128;

// E8 and E9: a warp has a row and all its K maps. dM is rounded once, here.
template <class T>
LEWEL_KERNEL(kMapsBackwardThreads)
maps_bwd_kernel(const MapsBackward<T> q) {
  using A = Accumulator<T>;
  const int row = block_x() * (kMapsBackwardThreads / 32) + warp(), K = q.maps.K;
  if (row >= q.R) return;
  const int64 of_image = static_cast<int64>(q.positions.quotient(row)) * K, of_row = static_cast<int64>(row) * K;
  const A clamped = q.maps.clamped(row);
  const auto d_unit = [&](int k, A u) {
    const A weight = q.maps.weight(u, q.softmax.top[of_image + k]) * q.softmax.inverse[of_image + k];
    return weight * (q.d_maps[of_row + k] - q.delta[of_image + k]) * q.inverse_tau;
  };
  A radial = 0;
  for (int k = lane(); k < K; k += 32) {
    const A u = widen<A>(q.maps.heat[of_row + k]) / clamped;
    radial += u * d_unit(k, u);
  }
  for (int mask = 16; mask > 0; mask /= 2) radial += shuffle_xor(radial, mask);
  if (!(q.maps.norm[row] > q.maps.eps)) radial = 0;
  for (int k = lane(); k < K; k += 32) {
    const A u = widen<A>(q.maps.heat[of_row + k]) / clamped;
    q.d_heat[of_row + k] = rounded<T>((d_unit(k, u) - u * radial) / clamped);
  }
}

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
  const Source d_heat{Exact<T>{q.d_heat}, Strided{q.K}, Strided{1}, q.R, q.K, q.K % (16 / static_cast<int>(sizeof(T))) == 0};
  const Source weight{Exact<T>{q.weight.data}, Strided{q.weight.row}, Strided{q.weight.column}, q.K, q.D, q.weight.wide};
  const Destination d_pixels{q.d_pixels, Rows{q.positions, q.d_image, q.d_position}, Strided{q.d_channel},
                             q.R, q.D, q.d_wide, q.d_planes, q.add};
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

// dW and db of E10, the first of two stages: a block has some maps, some channels of the pixels, and a part of the rows.
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
  const Source d_heat{Exact<T>{q.d_heat}, Strided{q.K}, Strided{1}, q.R, q.K, q.K % (16 / static_cast<int>(sizeof(T))) == 0};
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
          sums.template add<kDepth<T>, false, PLANES>(heat, Shape::HeatTile::kPitch,
                                                      heat + Shape::HeatTile::kNumbers, Shape::PixelTile::kPitch);
        if (q.d_bias && block_x() == 0 && thread() < MAPS) {
          A sum = 0;
#pragma unroll
          for (int i = 0; i < kDepth<T>; ++i) sum += widen<A>(heat[i * Shape::HeatTile::kPitch + thread()]);
          bias_sum += sum;
        }
      });
  if (q.d_weight) {
    const Mixed part_of_it = Mixed{q.d_weight, kNumber<A>}.after(static_cast<int64>(part) * q.K * q.D);
    const Destination d_weight{part_of_it, Strided{q.d_row}, Strided{q.d_column}, q.K, q.D, q.d_wide, q.d_row < q.d_column,
                               false};
    sums.bands(reinterpret_cast<A*>(memory), [&](const A* band, int row, int column) {
      write_band<A, Sums::kWarpColumns>(d_weight, band, Sums::kScratchPitch, first_map + row, first_column + column);
    });
  }
  const int k = first_map + thread();
  if (q.d_bias && block_x() == 0 && thread() < MAPS && k < q.K)
    q.d_bias[static_cast<int64>(part) * q.K + k] = bias_sum;
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
