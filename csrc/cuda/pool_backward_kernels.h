// The kernels of the backward from the pooled vectors to the heat maps, E6-E9 of docs/math.md. Grids are in backward.h.
#pragma once

#include "cuda/destination.h"
#include "cuda/maps.h"
#include "cuda/operands.h"

namespace lewel::cuda {

template <class T>
struct PoolBackward {
  using A = Accumulator<T>;
  Images<T> features;  // (N, C, P)
  HeatMaps<T> maps;
  Softmax<A> softmax;  // written where one tile holds all positions, else read
  Mixed grad_pooled;   // (N, L, C) with these strides
  int64 grad_image, grad_l, grad_channel;
  bool grad_wide;   // of T, and 16 bytes may be loaded at a time along channels
  Mixed grad_maps;  // (N, K, P) with these strides, or null: the gradient of the maps that were returned
  int64 grad_maps_image, grad_maps_map, grad_maps_position;
  Mixed d_features;  // (N, C, P) with these strides, or null where it is not wanted
  int64 d_image, d_channel, d_position;
  bool d_wide, d_planes;
  A* d_maps;  // dA (R, K), or null where nothing of the projection is wanted
  A* delta;   // (tiles, N, K)
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
    return front(stages) + Maps::kNumbers * sizeof(T) + (kScratch + Maps::kSums) * sizeof(Accumulator<T>);
  }
};

// E6, E7 and the delta of E8 in one pass over features and dR: a block has an image, a tile of its positions, and a
// group. With more than MAPS maps in a group there are two launches: one for E7 and delta, a block for each MAPS maps;
// and one for E6, where a block goes through all maps of the group for each chunk of channels.
template <class T, int MAPS, bool PLANES>
LEWEL_KERNEL((PoolBackwardShape<T, MAPS, PLANES>::kThreads), (sizeof(T) == 8            ? 2
                                                              : MAPS > 32 && kArch < 80 ? 1
                                                                                        : 3))
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
  const Source grads{Converted<T>{q.grad_pooled.after(image * q.grad_image + channels_before * q.grad_channel)},
                     Strided{q.grad_l},
                     Strided{q.grad_channel},
                     q.L,
                     q.width,
                     q.grad_wide};
  const Destination d_features{q.d_features.after(image * q.d_image + channels_before * q.d_channel),
                               Strided{q.d_position},
                               Strided{q.d_channel},
                               P,
                               q.width,
                               q.d_wide,
                               q.d_planes,
                               false};
  typename Shape::FeatureTile feature_tile;
  typename Shape::GradTile grad_tile;
  FeatureSums feature_sums;
  MapSums map_sums;
  feature_sums.zero();
  map_sums.zero();

  const auto write_weights = [&](int block, bool first) {
    Maps maps(q.maps, image, group * q.L + block * MAPS, q.L - block * MAPS);
    if (tiles > 1 || !first)
      maps.load(q.softmax, image);
    else
      maps.reduce(reduced);
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
        move(
            step, stage, [&](T* to, int slow, int fast) { feature_tile.begin(features, to, slow, fast); },
            [&](T* to, int slow, int fast) { grad_tile.begin(grads, to, slow, fast); });
      },
      [&](int step, int stage) {
        move(
            step, stage, [&](T* to, int slow, int fast) { feature_tile.end(features, to, slow, fast); },
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
      x += q.grad_maps.template get<A>(image * q.grad_maps_image + maps.k() * q.grad_maps_map +
                                       p * q.grad_maps_position);
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

}  // namespace lewel::cuda
