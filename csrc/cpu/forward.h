// E1-E5. Every array of a task is [positions, maps] or [positions, channels]: vectors run along maps or channels,
// whatever the layout of the inputs.
#pragma once

#include "maps.h"

namespace lewel::cpu {

constexpr int64_t kRowBlock = 64;  // the most positions of one task

inline int64_t row_blocks(int64_t positions) { return (positions + kRowBlock - 1) / kRowBlock; }

// The first position of a block: a multiple of 16, so that pairs of positions and whole cache lines stay together.
inline int64_t block_begin(int64_t positions, int64_t block) {
  return std::min(positions, (positions + 15) / 16 * block / row_blocks(positions) * 16);
}

// Outputs above this size are written past the caches.
constexpr int64_t kLarge = int64_t{8} << 20;

inline bool is_large(const Tensor3& t, int64_t elements) { return elements * size_of(t.dtype) > kLarge; }

template <class A>
int64_t panels(int64_t columns) {
  return (columns + kPanel<A> - 1) / kPanel<A>;
}

template <class A>
int64_t forward_workspace(const Forward& q) {
  return panels<A>(q.K) * q.D * kPanel<A>;
}

// Panels of W^T, each [D, kPanel], or [D / 2, kPanel] pairs.
template <class A>
void pack_weight_transposed(const Forward& q, A* packed) {
  const int64_t blocks = (q.D + kDepth - 1) / kDepth;
  for_each_task(panels<A>(q.K) * blocks, [&](int64_t task) {
    const int64_t k = task / blocks * kPanel<A>, d = task % blocks * kDepth;
    const int64_t columns = std::min<int64_t>(kPanel<A>, q.K - k), width = padded<A>(columns);
    const int64_t rows = std::min(kDepth, q.D - d);
    const Matrix block = q.weight.transposed().at(d, k);
    if constexpr (kPairs<A>)
      if (paired(q.pixels.dtype, q.D)) {
        auto [wide] = scratch<A>(rows * kPanel<A>);
        read_block(wide, kPanel<A>, block, rows, columns, width);
        pair_panel<false>(reinterpret_cast<Pair*>(packed) + (k * q.D + d * kPanel<A>) / 2, wide, rows, width);
        return;
      }
    read_block(packed + k * q.D + d * kPanel<A>, kPanel<A>, block, rows, columns, width);
  });
}

// E1 with the statistics of E2: heat maps rounded to storage, and the norm of what was stored.
template <class A>
void project(const Forward& q, const A* packed) {
  const int64_t blocks = row_blocks(q.P), width = padded<A>(q.K);
  for_each_task(q.N * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, b = task % blocks;
    const int64_t p0 = block_begin(q.P, b), rows = block_begin(q.P, b + 1) - p0;
    auto [m, converted, bias] = scratch<A>(rows * width, padded<A>(rows) * kDepth, width);  // m [rows, width]
    for (int64_t d = 0; d < q.D; d += kDepth) {
      const int64_t depth = std::min(kDepth, q.D - d);
      const Matrix x = q.pixels.by_position(n).at(p0, d);
      const auto multiply = [&](auto left, const auto* panels_of_w, int64_t steps, int64_t of_steps) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(panels_of_w)>>;
        for (int64_t k = 0; k < q.K; k += kPanel<A>)
          product<T>(rows, std::min<int64_t>(kPanel<A>, q.K - k), steps, left, {panels_of_w + k * of_steps, kPanel<A>},
                     m + k, width, d > 0, run_of(q.D));
      };
      if constexpr (kPairs<A>)
        if (paired(q.pixels.dtype, q.D)) {
          multiply(left_pairs(x, rows, depth, converted), reinterpret_cast<const Pair*>(packed) + d / 2 * kPanel<A>,
                   depth / 2, q.D / 2);
          continue;
        }
      multiply(left_side(x, rows, depth, converted), packed + d * kPanel<A>, depth, q.D);
    }
    if (q.bias.data) {
      read_block(bias, width, q.bias, 1, q.K, width);
      for (int64_t p = 0; p < rows; ++p)
        for (int64_t k = 0; k < width; k += kLanes<A>) {
          A* at = m + p * width + k;
          store(at, load(at) + load(bias + k));
        }
    }
    const Matrix heat = q.heat.by_position(n).at(p0, 0);
    write_block(heat, m, width, rows, q.K);
    if (heat.dtype != kDType<A>) read_block(m, width, heat, rows, q.K, width);
    for (int64_t p = 0; p < rows; ++p) {
      Vec<A> squares = {};
      for (int64_t k = 0; k < width; k += kLanes<A>) squares += load(m + p * width + k) * load(m + p * width + k);
      static_cast<A*>(q.norm)[n * q.P + p0 + p] = std::sqrt(sum_lanes<A>(squares));
    }
  });
}

// E2-E5 for one group of one image.
template <class A>
void pool(const Forward& q) {
  const int64_t P = q.P, L = q.L(), channels = q.group_channels(), width = padded<A>(L);
  for_each_task(q.N * q.G, [&](int64_t task) {
    const int64_t n = task / q.G, g = task % q.G;
    auto [maps, packed, sums] = scratch<A>(P * width, kDepth * kPanel<A>, 2 * L * kPanel<A>);
    group_maps(q, q.heat, static_cast<const A*>(q.norm), n, g, MapBlock<A>{maps, width});
    if (q.maps) write_block(q.maps.by_position(n).at(0, g * L), maps, width, P, L);
    const bool large = is_large(q.pooled, q.N * L * q.C);
    for (int64_t c = 0; c < channels; c += kPanel<A>) {
      const int64_t columns = std::min<int64_t>(kPanel<A>, channels - c);
      const Target<A> target(q.pooled.by_row(n).at(0, g * channels + c), columns, large, sums);
      for (int64_t p = 0; p < P; p += kDepth) {  // E5
        const int64_t depth = std::min(kDepth, P - p);
        const Matrix f_block = q.features.by_position(n).at(p, g * channels + c);
        const Right<A> f = right_side(f_block, depth, columns, packed);
        prefetch_block(f_block.at(0, columns), depth, std::min<int64_t>(kPanel<A>, channels - c - columns));
        product<A>(L, columns, depth, {maps + p * width, 1, width}, f, target.data, target.row, p > 0,
                   run_of(L, channels));
      }
      target.finish(L, columns);
    }
  });
}

template <class A>
void forward(const Forward& q) {
  A* packed = static_cast<A*>(q.workspace);
  pack_weight_transposed(q, packed);
  project(q, packed);
  pool<A>(q);
}

}  // namespace lewel::cpu
