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

// 1 / tau, rounded once: exact for 0.1 or 0.05, which the type itself rounds. Finite, so that 0 / tau is 0 for any tau.
template <class A>
A inverse_temperature(const Problem& q) {
  return static_cast<A>(std::min<double>(1 / q.temperature, std::numeric_limits<A>::max()));
}

// Calls f(begin, end) for blocks of about sqrt(count) terms: one running sum would be less exact than PyTorch's.
template <class F>
LEWEL_INLINE void for_each_block(int64_t count, F&& f) {
  int64_t block = 1;
  while (block * block < count) block *= 2;
  for (int64_t begin = 0; begin < count; begin += block) f(begin, std::min(begin + block, count));
}

// The sum of term(i) over i < count.
template <class A, class Term>
LEWEL_INLINE Vec<A> blocked_sum(int64_t count, Term&& term) {
  Vec<A> total = {};
  for_each_block(count, [&](int64_t begin, int64_t end) {
    Vec<A> partial = {};
    for (int64_t i = begin; i < end; ++i) partial += term(i);
    total += partial;
  });
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
  const A eps = static_cast<A>(q.eps), sharpness = inverse_temperature<A>(q);
  read_block(maps.data, maps.row, heat.by_position(n).at(0, g * L), P, L, width);
  for (int64_t l = 0; l < width; l += kLanes<A>) {
    Vec<A> most = splat(-std::numeric_limits<A>::infinity());
    for (int64_t p = 0; p < P; ++p) {
      const Vec<A> unit = load(maps.at(p, l)) / splat(clamped(norm[n * P + p], eps));  // E2
      most = unit > most ? unit : most;
      store(maps.at(p, l), unit);
    }
    // Its rounding would be one error of all positions: what an addition to the total loses goes into the next.
    Vec<A> sum = {}, lost = {};
    for_each_block(P, [&](int64_t begin, int64_t end) {
      Vec<A> partial = {};
      for (int64_t p = begin; p < end; ++p) {
        const Vec<A> e = exp((load(maps.at(p, l)) - most) * sharpness);  // E3, E4
        store(maps.at(p, l), e);
        partial += e;
      }
      const Vec<A> added = partial - lost, next = sum + added;
      lost = (next - sum) - added;
      sum = next;
    });
    // So would be the rounding of 1 / sum: what a product with it lacks is added.
    const Vec<A> scale = A(1) / sum;
    Vec<A> rest;
    for (int i = 0; i < kLanes<A>; ++i) rest[i] = std::fma(-sum[i], scale[i], A(1));
    for (int64_t p = 0; p < P; ++p) {
      const Vec<A> a = load(maps.at(p, l)) * scale;
      store(maps.at(p, l), a + a * rest);
    }
  }
}

}  // namespace lewel::cpu
