// E2-E4: the alignment maps of one group of one image, from its heat maps.
#pragma once

#include <cmath>
#include <limits>

#include "kernels.h"
#include "threads.h"
#include "pairs.h"

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

// Where a task keeps its [positions, maps] arrays: row p at data + p * row, whole vectors of maps.
template <class A>
struct MapBlock {
  A* data;
  int64_t row;

  A* at(int64_t p, int64_t l) const { return data + p * row + l; }
};

// maps [P, padded L] = A of group g of image n, with arbitrary values beyond column L.
template <class A>
void group_maps(const Problem& q, const Tensor3& heat, const A* norm, int64_t n, int64_t g, MapBlock<A> maps) {
  const int64_t P = q.P, L = q.L(), width = padded<A>(L);
  const A eps = static_cast<A>(q.eps), temperature = static_cast<A>(q.temperature);
  read_block(maps.data, maps.row, heat.by_position(n).at(0, g * L), P, L, width);
  for (int64_t l = 0; l < width; l += kLanes<A>) {
    Vec<A> most = splat(-std::numeric_limits<A>::infinity());
    for (int64_t p = 0; p < P; ++p) {
      const Vec<A> s = load(maps.at(p, l)) / splat(clamped(norm[n * P + p], eps) * temperature);  // E2, E3
      most = s > most ? s : most;
      store(maps.at(p, l), s);
    }
    const Vec<A> sum = blocked_sum<A>(P, [&](int64_t p) {  // E4
      const Vec<A> e = exp(load(maps.at(p, l)) - most);
      store(maps.at(p, l), e);
      return e;
    });
    const Vec<A> scale = A(1) / sum;
    for (int64_t p = 0; p < P; ++p) store(maps.at(p, l), load(maps.at(p, l)) * scale);
  }
}

}  // namespace lewel::cpu
