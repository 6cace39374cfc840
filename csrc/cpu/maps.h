// E2-E4: the alignment maps of one group of one image, from its heat maps.
#pragma once

#include <cmath>

#include "../params.h"
#include "threads.h"
#include "tile.h"

namespace lewel::cpu {

// max(norm, eps), NaN for NaN as in PyTorch.
template <class A>
A clamped(A norm, A eps) {
  return norm <= eps ? eps : norm;
}

// The sum of term(i) over i < count in blocks of about sqrt(count): one running sum would be less exact than PyTorch's.
template <class A, class Term>
LEWEL_INLINE Vec<A> blocked_sum(int64_t count, Term&& term) {
  int64_t block = 1;
  while (block * block < count) block *= 2;
  Vec<A> total = {};
  for (int64_t begin = 0; begin < count; begin += block) {
    Vec<A> partial = {};
    for (int64_t i = begin; i < std::min(begin + block, count); ++i) partial += term(i);
    total += partial;
  }
  return total;
}

// maps [P, padded L] = A of group g of image n, with arbitrary values beyond column L.
template <class A>
void group_maps(const Problem& q, const Tensor3& heat, const A* norm, int64_t n, int64_t g, A* maps) {
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
    const Vec<A> sum = blocked_sum<A>(P, [&](int64_t p) {
      const Vec<A> e = exp(load(column + p * width) - most);
      store(column + p * width, e);
      return e;
    });
    // a division, not a product by 1/sum, whose rounding error all positions would share: db is a sum over positions
    for (int64_t p = 0; p < P; ++p) store(column + p * width, load(column + p * width) / sum);
  }
}

}  // namespace lewel::cpu
