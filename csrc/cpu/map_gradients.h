// The gradient of the normalised maps: the first pass of the backward.
#pragma once

#include "workspace.h"

namespace lewel::cpu {

// E7 for one group of one image. dr is scratch of kDepth * width, block of kRowBlock * kDepth.
template <class A>
void pooling_gradient(const Backward& q, int64_t n, int64_t g, MapBlock<A> dmaps, A* dr, A* block) {
  const int64_t P = q.P, L = q.L(), channels = q.group_channels(), width = padded<A>(L);
  for (int64_t c = 0; c < channels; c += kDepth) {
    const int64_t depth = std::min(kDepth, channels - c), channel = g * channels + c;
    const Matrix dr_block = q.grad_pooled.by_row(n).at(0, channel);
    bool by_pairs = false;  // where both factors are bf16 already
    if constexpr (kPairs<A>) by_pairs = adjacent_pairs(dr_block) && paired(q.features.dtype, depth);
    if (by_pairs)
      read_block(dr, width, as_pairs(dr_block).transposed(), depth / 2, L, width);
    else
      read_block(dr, width, dr_block.transposed(), depth, L, width);
    for (int64_t b = 0; b < row_blocks(P); ++b) {
      const int64_t p0 = block_begin(P, b), rows = block_begin(P, b + 1) - p0;
      const Matrix f_block = q.features.by_position(n).at(p0, channel);
      const auto multiply = [&](auto left, const auto* right, int64_t steps) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(right)>>;
        for (int64_t l = 0; l < L; l += kPanel<A>)
          product<T>(rows, std::min<int64_t>(kPanel<A>, L - l), steps, left, {right + l, width}, dmaps.at(p0, l),
                     dmaps.row, c > 0);
      };
      if constexpr (kPairs<A>)
        if (by_pairs) {
          multiply(left_pairs(f_block, rows, depth, block), reinterpret_cast<const Pair*>(dr), depth / 2);
          continue;
        }
      multiply(left_side(f_block, rows, depth, block), dr, depth);
    }
  }
}

// E4 again, E7, E8: A and dMh of one group of one image.
template <class A>
void group_gradients(const Backward& q, const Workspace<A>& w) {
  const int64_t P = q.P, K = q.K, L = q.L(), width = padded<A>(L);
  const A sharpness = inverse_temperature<A>(q);
  // Whole vectors are written where they are kept; groups that end within a vector go through scratch.
  const bool whole = width == L;
  for_each_task(q.N * q.G, [&](int64_t task) {
    const int64_t n = task / q.G, g = task % q.G, first = n * P * K + g * L;
    auto [scratch_maps, scratch_dmaps, dr, block] =  // [P, width] twice, [kDepth, width], [kRowBlock, kDepth or width]
        scratch<A>(whole && q.d_features ? 0 : P * width, whole ? 0 : P * width, kDepth * width,
                   kRowBlock * std::max(kDepth, width));
    const MapBlock<A> maps = whole && q.d_features ? MapBlock<A>{w.maps + first, K} : MapBlock<A>{scratch_maps, width};
    const MapBlock<A> dmaps = whole ? MapBlock<A>{w.dm + first, K} : MapBlock<A>{scratch_dmaps, width};
    const auto keep = [&](const MapBlock<A>& from, A* to) {
      if (from.data != to) write_block(Matrix{reinterpret_cast<char*>(to), kDType<A>, K, 1}, from.data, from.row, P, L);
    };

    group_maps(q, q.heat, static_cast<const A*>(q.norm), n, g, maps);
    if (q.d_features) keep(maps, w.maps + first);
    if (!projects(q)) return;

    pooling_gradient(q, n, g, dmaps, dr, block);
    if (q.grad_maps)
      for (int64_t p0 = 0; p0 < P; p0 += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, P - p0);
        read_block(block, width, q.grad_maps.by_position(n).at(p0, g * L), rows, L, width);
        for (int64_t p = 0; p < rows; ++p)
          for (int64_t l = 0; l < width; l += kLanes<A>)
            store(dmaps.at(p0 + p, l), load(dmaps.at(p0 + p, l)) + load(block + p * width + l));
      }
    for (int64_t l = 0; l < width; l += kLanes<A>) {  // E8
      const Vec<A> delta = blocked_sum<A>(P, [&](int64_t p) { return load(maps.at(p, l)) * load(dmaps.at(p, l)); });
      for (int64_t p = 0; p < P; ++p) {
        store(dmaps.at(p, l), load(maps.at(p, l)) * (load(dmaps.at(p, l)) - delta) * sharpness);
      }
    }
    keep(dmaps, w.dm + first);
  });
}

}  // namespace lewel::cpu
