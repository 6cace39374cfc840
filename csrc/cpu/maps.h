// E2-E4: the alignment maps of one group of one image, from its heat maps.
#pragma once

#include <cmath>

#include "../params.h"
#include "threads.h"
#include "tile.h"

namespace lewel::cpu {

// Positions summed before their sum joins the total: a running sum over all P would lose sqrt(P) times more.
constexpr int64_t kSumBlock = 64;

// max(norm, eps), NaN for NaN as in PyTorch.
template <class A>
A clamped(A norm, A eps) {
  return norm <= eps ? eps : norm;
}

template <class A, class Term>
LEWEL_INLINE Vec<A> sum_positions(int64_t positions, Term&& term) {
  Vec<A> total = {};
  for (int64_t begin = 0; begin < positions; begin += kSumBlock) {
    Vec<A> partial = {};
    for (int64_t p = begin; p < std::min(begin + kSumBlock, positions); ++p) partial += term(p);
    total += partial;
  }
  return total;
}

// maps [P, padded L] = A of group g of image n, with arbitrary values beyond column L; lse [L] unless null.
template <class A>
void group_maps(const Problem& q, const Tensor3& heat, const A* norm, int64_t n, int64_t g, A* maps, A* lse) {
  const int64_t P = q.P, L = q.L(), width = padded<A>(L);
  const A eps = static_cast<A>(q.eps), temperature = static_cast<A>(q.temperature);
  read_block(maps, width, heat.by_position(n).at(0, g * L), P, L, width);
  for (int64_t p = 0; p < P; ++p) {
    const Vec<A> divisor = splat(clamped(norm[n * P + p], eps));
    for (A* row = maps + p * width; row < maps + (p + 1) * width; row += kLanes<A>) {
      Vec<A> s = load(row) / divisor;                       // E2
      if (temperature != A(1)) s = s / splat(temperature);  // E3
      store(row, s);
    }
  }
  for (int64_t l = 0; l < width; l += kLanes<A>) {  // E4
    A* column = maps + l;
    Vec<A> most = load(column);
    for (int64_t p = 1; p < P; ++p) {
      const Vec<A> s = load(column + p * width);
      most = s > most ? s : most;
    }
    const Vec<A> sum = sum_positions<A>(P, [&](int64_t p) {
      const Vec<A> e = exp(load(column + p * width) - most);
      store(column + p * width, e);
      return e;
    });
    const Vec<A> scale = A(1) / sum;
    for (int64_t p = 0; p < P; ++p) store(column + p * width, load(column + p * width) * scale);
    if (lse)
      for (int64_t i = 0; i < std::min<int64_t>(kLanes<A>, L - l); ++i) lse[l + i] = most[i] + std::log(sum[i]);
  }
}

}  // namespace lewel::cpu
