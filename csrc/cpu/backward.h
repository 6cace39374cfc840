// E6-E10 in three passes: over (image, group) for dMh, over (image, block of positions) for dM and the gradients of the
// inputs, over (panel of D, split of the rows) for the gradient of the weight.
#pragma once

#include "forward.h"

namespace lewel::cpu {

// Parts of the accumulators' workspace, in this order; empty where not needed.
template <class A>
struct Workspace {
  A *maps, *dm;     // A and dMh, then dM: (N, P, K)
  A* weight;        // panels of W, each [K, kPanel], or [K / 2, kPanel] pairs
  Pair* pairs;      // dM rounded to bf16, as pairs of positions: (N, (P + 1) / 2, K)
  A* partial;       // (splits, K, D) partial sums of dW
  int64_t elements;

  explicit Workspace(const Backward& q);
};

inline bool projects(const Backward& q) {
  return q.d_pixels || q.d_weight.data || q.d_bias.data || (q.d_features && q.project_features);
}

// The tensor that receives dM^T W (E10), null if none does.
inline const Tensor3& projected_gradient(const Backward& q) { return q.project_features ? q.d_features : q.d_pixels; }

// W is cut where the groups of channels are when both gradients go to the features, so that they share their panels.
inline int64_t weight_groups(const Backward& q) { return q.project_features ? q.G : 1; }

// Splits of the N*P rows summed by dW: a function of the shape, so that sums never depend on the number of threads.
template <class A>
int64_t weight_splits(const Backward& q) {
  const int64_t wanted = (32 + panels<A>(q.D) - 1) / panels<A>(q.D), most = (q.N * q.P + kDepth - 1) / kDepth;
  return std::max<int64_t>(1, std::min(wanted, most));
}

// Rows of pairs of positions of an image; the last is half empty where P is odd.
inline int64_t pair_rows_of(const Problem& q) { return (q.P + 1) / 2; }

template <class A>
Workspace<A>::Workspace(const Backward& q) {
  const int64_t nkp = q.N * q.K * q.P, groups = weight_groups(q), splits = weight_splits<A>(q);
  const int64_t sizes[] = {q.d_features ? nkp : 0, projects(q) ? nkp : 0,
                           projected_gradient(q) ? groups * panels<A>(q.D / groups) * q.K * kPanel<A> : 0,
                           q.d_weight.data && splits > 1 ? splits * q.K * q.D : 0,
                           q.d_weight.data && kPairs<A> && paired(q.pixels.dtype, 2) ? q.N * pair_rows_of(q) * q.K : 0};
  A** const parts[] = {&maps, &dm, &weight, &partial, reinterpret_cast<A**>(&pairs)};
  A* next = static_cast<A*>(q.workspace);
  elements = 0;
  for (int i = 0; i < 5; ++i) {
    *parts[i] = next + elements;
    elements += (sizes[i] + 31) / 16 * 16;  // whole vectors may be read from the last row of a part
  }
}

// E4 again, E7, E8: A and dMh of one group of one image.
template <class A>
void group_gradients(const Backward& q, const Workspace<A>& w) {
  const int64_t P = q.P, K = q.K, L = q.L(), channels = q.group_channels(), width = padded<A>(L);
  const A temperature = static_cast<A>(q.temperature);
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

    for (int64_t c = 0; c < channels; c += kDepth) {  // E7
      const int64_t depth = std::min(kDepth, channels - c), channel = g * channels + c;
      read_block(dr, width, q.grad_pooled.by_row(n).at(0, channel).transposed(), depth, L, width);
      for (int64_t b = 0; b < row_blocks(P); ++b) {
        const int64_t p0 = block_begin(P, b), rows = block_begin(P, b + 1) - p0;
        const Left<A> f = left_side(q.features.by_position(n).at(p0, channel), rows, depth, block);
        for (int64_t l = 0; l < L; l += kPanel<A>)
          product<A>(rows, std::min<int64_t>(kPanel<A>, L - l), depth, f, {dr + l, width}, dmaps.at(p0, l), dmaps.row,
                     c > 0);
      }
    }
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
        Vec<A> ds = load(maps.at(p, l)) * (load(dmaps.at(p, l)) - delta);
        if (temperature != A(1)) ds = ds / splat(temperature);
        store(dmaps.at(p, l), ds);
      }
    }
    keep(dmaps, w.dm + first);
  });
}

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
    Pair* out = w.pairs + (n * pair_rows_of(q) + p / 2) * K;
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
        const Target<A> target(q.d_pixels.by_position(n).at(p0, d), columns, is_large<A>(q.N * q.D * q.P), out);
        project_back(target, d / kPanel<A>, columns, false);
        target.finish(rows, columns);
      }
    if (!q.d_features) return;
    for (int64_t g = 0; g < q.G; ++g)
      for (int64_t c = 0; c < channels; c += kPanel<A>) {
        const int64_t columns = std::min<int64_t>(kPanel<A>, channels - c), channel = g * channels + c;
        const Target<A> target(q.d_features.by_position(n).at(p0, channel), columns, is_large<A>(q.N * q.C * q.P), out);
        const Right<A> dr = right_side(q.grad_pooled.by_row(n).at(0, channel), L, columns, packed);
        product<A>(rows, columns, L, {w.maps + first + g * L, K, 1}, dr, target.data, target.row, false);  // E6
        if (together) project_back(target, g * panels<A>(channels) + c / kPanel<A>, columns, true);
        target.finish(rows, columns);
      }
  });
}

// The rest of E10. Task s * panels + j sums split s of the N*P rows of dM^T X into panel j; the last task sums db.
template <class A>
void weight_gradients(const Backward& q, const Workspace<A>& w) {
  const int64_t K = q.K, D = q.D, all = q.N * q.P, count = panels<A>(D), splits = weight_splits<A>(q);
  const int64_t tasks = q.d_weight.data ? count * splits : 0;
  // What is summed: positions, or pairs of them.
  const bool by_pairs = kPairs<A> && paired(q.pixels.dtype, 2);
  const int64_t per_image = by_pairs ? pair_rows_of(q) : q.P, steps = q.N * per_image;
  for_each_task(tasks + (q.d_bias.data ? 1 : 0), [&](int64_t task) {
    if (task == tasks) {
      const int64_t width = padded<A>(K);
      auto [sums] = scratch<A>(width);
      for (int64_t k = 0; k < width; k += kLanes<A>)
        store(sums + k, blocked_sum<A>(all, [&](int64_t r) { return load(w.dm + r * K + k); }));
      write_block(q.d_bias, sums, width, 1, K);
      return;
    }
    const int64_t s = task / count, d = task % count * kPanel<A>, columns = std::min<int64_t>(kPanel<A>, D - d);
    auto [x, x_pairs, sums] = scratch<A>(kDepth * kPanel<A>, by_pairs ? kDepth * kPanel<A> / 2 : 0, K * kPanel<A>);
    if (all == 0) std::fill(sums, sums + K * kPanel<A>, A(0));
    const int64_t begin = steps * s / splits, end = steps * (s + 1) / splits;
    if constexpr (kPairs<A>)
      for (int64_t r = begin; by_pairs && r < end; r += kDepth / 2) {
        const int64_t depth = std::min(kDepth / 2, end - r);
        for (int64_t i = r; i < r + depth;) {
          const int64_t n = i / per_image, p = 2 * (i % per_image);
          const int64_t pairs = std::min(per_image - p / 2, r + depth - i), rows = std::min(2 * pairs, q.P - p);
          read_block(x, kPanel<A>, q.pixels.by_position(n).at(p, d), rows, columns, padded<A>(columns));
          pair_panel<false>(reinterpret_cast<Pair*>(x_pairs) + (i - r) * kPanel<A>, x, rows, padded<A>(columns));
          i += pairs;
        }
        product<Pair>(K, columns, depth, {w.pairs + r * K, 1, K}, {reinterpret_cast<const Pair*>(x_pairs), kPanel<A>}, sums,
                      kPanel<A>, r > begin);
      }
    for (int64_t r = begin; !by_pairs && r < end; r += kDepth) {
      const int64_t depth = std::min(kDepth, end - r);
      for (int64_t i = r; i < r + depth;) {  // the rows lie in several images
        const int64_t n = i / q.P, p = i % q.P, rows = std::min(q.P - p, r + depth - i);
        read_block(x + (i - r) * kPanel<A>, kPanel<A>, q.pixels.by_position(n).at(p, d), rows, columns,
                   padded<A>(columns));
        i += rows;
      }
      product<A>(K, columns, depth, {w.dm + r * K, 1, K}, {x, kPanel<A>}, sums, kPanel<A>, r > begin);
    }
    const Matrix out = splits == 1 ? q.d_weight.at(0, d)
                                   : Matrix{reinterpret_cast<char*>(w.partial + s * K * D + d), kDType<A>, D, 1};
    write_block(out, sums, kPanel<A>, K, columns);
  });
  if (!q.d_weight.data || splits == 1) return;
  for_each_task(K, [&](int64_t k) {
    A* row = w.partial + k * D;
    for (int64_t s = 1; s < splits; ++s)
      for (int64_t d = 0; d < D; ++d) row[d] += w.partial[(s * K + k) * D + d];
    write_block(q.d_weight.at(k, 0), row, D, 1, D);
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
