// The gradients of the weight and the bias: the last pass of the backward.
#pragma once

#include "workspace.h"

namespace lewel::cpu {

// Calls f(i - begin, image, row in the image, rows) for each run of rows [begin, end) that lies in one image.
template <class F>
LEWEL_INLINE void for_each_image(int64_t per_image, int64_t begin, int64_t end, F&& f) {
  for (int64_t i = begin; i < end;) {
    const int64_t rows = std::min(per_image - i % per_image, end - i);
    f(i - begin, i / per_image, i % per_image, rows);
    i += rows;
  }
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
    // Positions [p, p + rows) of an image, as panels of the product's right side.
    const auto block = [&](int64_t n, int64_t p) { return q.pixels.by_position(n).at(p, d); };
    if constexpr (kPairs<A>)
      for (int64_t r = begin; by_pairs && r < end; r += kDepth / 2) {
        const int64_t next = std::min(r + kDepth / 2, end);
        const auto rows_of = [&](int64_t pair, int64_t pairs) { return std::min(2 * pairs, q.P - 2 * pair); };
        for_each_image(per_image, r, next, [&](int64_t at, int64_t n, int64_t pair, int64_t pairs) {
          const int64_t rows = rows_of(pair, pairs);
          read_block(x, kPanel<A>, block(n, 2 * pair), rows, columns, padded<A>(columns));
          pair_panel<false>(reinterpret_cast<Pair*>(x_pairs) + at * kPanel<A>, x, rows, padded<A>(columns));
        });
        for_each_image(per_image, next, std::min(next + kDepth / 2, end),
                       [&](int64_t, int64_t n, int64_t pair, int64_t pairs) {
                         prefetch_block(block(n, 2 * pair), rows_of(pair, pairs), columns);
                       });
        const Right<Pair> right{reinterpret_cast<const Pair*>(x_pairs), kPanel<A>};
        product<Pair>(K, columns, next - r, {w.pairs() + r * K, 1, K}, right, sums, kPanel<A>, r > begin);
      }
    for (int64_t r = begin; !by_pairs && r < end; r += kRows) {
      const int64_t next = std::min(r + kRows, end);
      for_each_image(per_image, r, next, [&](int64_t at, int64_t n, int64_t p, int64_t rows) {
        read_block(x + at * kPanel<A>, kPanel<A>, block(n, p), rows, columns, padded<A>(columns));
      });
      for_each_image(per_image, next, std::min(next + kRows, end), [&](int64_t, int64_t n, int64_t p, int64_t rows) {
        prefetch_block(block(n, p), rows, columns);
      });
      product<A>(K, columns, next - r, {w.dm + r * K, 1, K}, {x, kPanel<A>}, sums, kPanel<A>, r > begin,
                 std::min(run_of(K, D), run_of(all) / 2));
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

}  // namespace lewel::cpu
