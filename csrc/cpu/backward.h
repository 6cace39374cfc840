// E6-E10 in three passes: over (image, group) for dMh, over (image, block of positions) for dM and the gradients of the
// inputs, over (panel of D, split of the rows) for the gradient of the weight.
#pragma once

#include "map_gradients.h"
#include "weight_gradient.h"

namespace lewel::cpu {

// E9 in place on positions [p0, p0 + rows) of image n: dMh becomes dM. unit is scratch of (rows + 1) * width.
template <class A>
void normalisation_gradient(const Backward& q, int64_t n, int64_t p0, int64_t rows, A* dm, A* unit) {
  const int64_t width = padded<A>(q.K);
  const A eps = static_cast<A>(q.eps);
  A* const padded_row = unit + rows * width;
  std::fill(padded_row, padded_row + width, A(0));
  read_block(unit, width, q.heat.by_position(n).at(p0, 0), rows, q.K, width);
  for (int64_t p = 0; p < rows; ++p, unit += width) {
    A* row = dm + (n * q.P + p0 + p) * q.K;
    A* grad = width == q.K ? row : padded_row;
    if (grad != row) std::copy(row, row + q.K, grad);
    const A norm = static_cast<const A*>(q.norm)[n * q.P + p0 + p];
    const Vec<A> divisor = splat(clamped(norm, eps));
    Vec<A> products = {};
    for (int64_t k = 0; k < width; k += kLanes<A>) {
      const Vec<A> mh = load(unit + k) / divisor;
      store(unit + k, mh);
      products += mh * load(grad + k);
    }
    // where the norm is the constant eps it has no gradient
    const Vec<A> dot = splat(norm <= eps ? A(0) : sum_lanes<A>(products));
    for (int64_t k = 0; k < width; k += kLanes<A>)
      store(grad + k, (load(grad + k) - load(unit + k) * dot) / divisor);
    if (grad != row) std::copy(grad, grad + q.K, row);
  }
}

// Panels of W, each [K, kPanel].
template <class A>
void pack_weight(const Backward& q, A* packed) {
  const int64_t group = q.D / weight_groups(q), per_group = panels<A>(group);
  for_each_task(weight_groups(q) * per_group, [&](int64_t task) {
    const int64_t d = task % per_group * kPanel<A>, columns = std::min<int64_t>(kPanel<A>, group - d);
    const Matrix block = q.weight.at(0, task / per_group * group + d);
    if constexpr (kPairs<A>)
      if (paired(q.pixels.dtype, q.K)) {
        auto [wide] = scratch<A>(q.K * kPanel<A>);
        read_block(wide, kPanel<A>, block, q.K, columns, padded<A>(columns));
        pair_panel<false>(reinterpret_cast<Pair*>(packed) + task * q.K / 2 * kPanel<A>, wide, q.K, padded<A>(columns));
        return;
      }
    read_block(packed + task * q.K * kPanel<A>, kPanel<A>, block, q.K, columns, padded<A>(columns));
  });
}

// Positions [p0, p0 + rows) of dM, p0 even, as pairs of positions: the left side of dW.
template <class A>
void pair_positions(const Backward& q, const Workspace<A>& w, int64_t n, int64_t p0, int64_t rows) {
  const int64_t K = q.K, whole = K / kLanes<A> * kLanes<A>;
  for (int64_t p = p0; p < p0 + rows; p += 2) {
    const A* even = w.dm + (n * q.P + p) * K;
    const A* odd = p + 1 < q.P ? even + K : nullptr;
    Pair* out = w.pairs() + (n * pair_rows_of(q) + p / 2) * K;
    pair_rows<true>(out, even, odd, whole);
    A ends[2][kLanes<A>] = {};
    Pair last[kLanes<A>];
    std::copy(even + whole, even + K, ends[0]);
    if (odd) std::copy(odd + whole, odd + K, ends[1]);
    pair_rows<true>(last, ends[0], ends[1], kLanes<A>);
    std::copy(last, last + K - whole, out + whole);
  }
}

// E9, then E6 and the first of E10 for a block of positions of one image.
template <class A>
void input_gradients(const Backward& q, const Workspace<A>& w) {
  const int64_t blocks = row_blocks(q.P), K = q.K, L = q.L(), channels = q.group_channels();
  const bool together = q.project_features && q.d_features;
  const bool large_pixels = is_large(q.d_pixels, q.N * q.D * q.P);
  const bool large_features = is_large(q.d_features, q.N * q.C * q.P);
  for_each_task(q.N * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, b = task % blocks;
    const int64_t p0 = block_begin(q.P, b), rows = block_begin(q.P, b + 1) - p0, first = (n * q.P + p0) * K;
    auto [unit, packed, out] = scratch<A>((rows + 1) * padded<A>(K), L * kPanel<A>, 2 * rows * kPanel<A>);
    if (projects(q)) normalisation_gradient(q, n, p0, rows, w.dm, unit);
    const bool by_pairs = kPairs<A> && paired(q.pixels.dtype, K);
    if constexpr (kPairs<A>) {
      if (q.d_weight.data && paired(q.pixels.dtype, 2)) pair_positions(q, w, n, p0, rows);
      if (by_pairs && projects(q)) write_run(reinterpret_cast<bf16*>(unit), w.dm + first, rows * K);
    }
    // target (+)= dM W for one panel of W
    const auto project_back = [&](const Target<A>& target, int64_t panel, int64_t columns, bool accumulate) {
      if constexpr (kPairs<A>)
        if (by_pairs) {
          const Pair* right = reinterpret_cast<const Pair*>(w.weight) + panel * (K / 2) * kPanel<A>;
          product<Pair>(rows, columns, K / 2, {reinterpret_cast<const Pair*>(unit), K / 2, 1}, {right, kPanel<A>},
                        target.data, target.row, accumulate);
          return;
        }
      product<A>(rows, columns, K, {w.dm + first, K, 1}, {w.weight + panel * K * kPanel<A>, kPanel<A>}, target.data,
                 target.row, accumulate);
    };
    if (q.d_pixels)
      for (int64_t d = 0; d < q.D; d += kPanel<A>) {
        const int64_t columns = std::min<int64_t>(kPanel<A>, q.D - d);
        const Target<A> target(q.d_pixels.by_position(n).at(p0, d), columns, large_pixels, out);
        project_back(target, d / kPanel<A>, columns, false);
        target.finish(rows, columns);
      }
    if (!q.d_features) return;
    for (int64_t g = 0; g < q.G; ++g)
      for (int64_t c = 0; c < channels; c += kPanel<A>) {
        const int64_t columns = std::min<int64_t>(kPanel<A>, channels - c), channel = g * channels + c;
        const Target<A> target(q.d_features.by_position(n).at(p0, channel), columns, large_features, out);
        const Matrix dr_block = q.grad_pooled.by_row(n).at(0, channel);
        const Right<A> dr = right_side(dr_block, L, columns, packed);
        prefetch_block(dr_block.at(0, columns), L, std::min<int64_t>(kPanel<A>, channels - c - columns));
        product<A>(rows, columns, L, {w.maps + first + g * L, K, 1}, dr, target.data, target.row, false);  // E6
        if (together) project_back(target, g * panels<A>(channels) + c / kPanel<A>, columns, true);
        target.finish(rows, columns);
      }
  });
}

template <class A>
int64_t backward_workspace(const Backward& q) {
  return Workspace<A>(q).elements;
}

template <class A>
void backward(const Backward& q) {
  const Workspace<A> w(q);
  if (projected_gradient(q)) pack_weight(q, w.weight);
  group_gradients(q, w);
  if (q.d_features || projects(q)) input_gradients(q, w);
  if (q.d_weight.data || q.d_bias.data) weight_gradients(q, w);
}

}  // namespace lewel::cpu
