// E2-E4: from heat maps to the weights of positions, as several kernels need them.
#pragma once

#include "cuda/product.h"

namespace lewel::cuda {

// Heat maps M and the norms of their rows, as `project_kernel` writes them: R = N P rows of K maps.
template <class T>
struct HeatMaps {
  using A = Accumulator<T>;
  const T* heat;  // (R, K)
  const A* norm;  // (R,)
  int P, K;
  A eps;
  A factor;  // log2(e) / temperature

  // max(norm, eps) of E2; NaN stays NaN.
  LEWEL_DEVICE A clamped(int64 row) const { return norm[row] <= eps ? eps : norm[row]; }
  // U of E2.
  LEWEL_DEVICE A unit(int64 row, int k) const { return widen<A>(heat[row * K + k]) / clamped(row); }
  // exp((U - top) / tau) of E4. The difference first: it is exact where the result is large.
  LEWEL_DEVICE A weight(A u, A top) const { return power_of_two((u - top) * factor); }
};

// What E4 needs to know of all positions: the largest U of each map, and 1 / sum_p exp((U - top) / tau).
template <class A>
struct Softmax {
  A* top;      // (N, K); null where one tile holds all positions, and nobody wrote them down
  A* inverse;  // (N, K)
};

// The larger of two, of which NaN is never the larger: the sum of the weights will be NaN where a U is.
template <class A>
LEWEL_DEVICE A larger(A a, A b) {
  return b > a ? b : a;
}

// Channels of a group that a step of the pooling kernels takes.
template <class T>
constexpr int kPooledChannels = sizeof(T) == 2 ? 64 : 32;

// The weights of kPositions positions of one image, for MAPS maps of one group, computed by kThreads threads: each has
// one map, and every kParts-th position.
template <class T, int MAPS>
class GroupMaps {
  using A = Accumulator<T>;

 public:
  static constexpr int kThreads = 128;
  static constexpr int kPositions = 64;
  static constexpr int kParts = kThreads / MAPS;
  static constexpr int kEach = kPositions / kParts;
  static constexpr int kPitch = MAPS + 16 / static_cast<int>(sizeof(T));
  static constexpr int kNumbers = kPositions * kPitch;
  static constexpr int kSums = kThreads;  // accumulators of shared memory for `reduce`

  // Maps first to first + MAPS - 1 of all, of which `count` are there.
  LEWEL_DEVICE GroupMaps(const HeatMaps<T>& maps, int image, int first, int count)
      : maps_(maps), row_(static_cast<int64>(image) * maps.P), k_(first + map()), present_(map() < count) {}

  LEWEL_DEVICE static int map() { return thread() % MAPS; }
  LEWEL_DEVICE static int part() { return thread() / MAPS; }
  LEWEL_DEVICE static int position(int j) { return part() + j * kParts; }

  LEWEL_DEVICE int k() const { return k_; }
  LEWEL_DEVICE bool present() const { return present_; }
  LEWEL_DEVICE A top() const { return top_; }
  LEWEL_DEVICE A inverse() const { return inverse_; }
  LEWEL_DEVICE bool inside(int p) const { return present_ && p < maps_.P; }
  LEWEL_DEVICE A weight(A u) const { return maps_.weight(u, top_) * inverse_; }

  // use(j, u) for U at position(j) from `first` on, where it is inside. Eight loads at a time are on their way: one by
  // one, as a division between them would have it, their latencies add up.
  template <class Use>
  LEWEL_DEVICE void each_unit(int first, Use use) const {
    constexpr int kTogether = 8;
#pragma unroll 1
    for (int from = 0; from < kEach; from += kTogether) {
      T heat[kTogether];
      A norm[kTogether];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        const int p = first + position(from + e);
        heat[e] = inside(p) ? maps_.heat[(row_ + p) * maps_.K + k_] : T{};
        norm[e] = inside(p) ? maps_.norm[row_ + p] : A{1};
      }
#pragma unroll
      for (int e = 0; e < kTogether; ++e)
        if (inside(first + position(from + e)))
          use(from + e, widen<A>(heat[e]) / (norm[e] <= maps_.eps ? maps_.eps : norm[e]));
    }
  }

  // The softmax's statistics, where somebody wrote them down.
  LEWEL_DEVICE void load(const Softmax<A>& softmax, int image) {
    const int64 at = static_cast<int64>(image) * maps_.K + k_;
    top_ = present_ ? softmax.top[at] : 0;
    inverse_ = present_ ? softmax.inverse[at] : 0;
  }

  // The same from all positions, of which there are at most kPositions. sums: kSums of shared memory.
  LEWEL_DEVICE void reduce(A* sums) {
    A top = -infinity();
    each_unit(0, [&](int, A u) { top = larger(top, u); });
    sums[thread()] = top;
    block_barrier();
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = larger(top, sums[i * MAPS + map()]);
    block_barrier();
    A sum = 0;
    each_unit(0, [&](int, A u) { sum += maps_.weight(u, top); });
    sums[thread()] = sum;
    block_barrier();
    sum = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) sum += sums[i * MAPS + map()];
    top_ = top;
    inverse_ = 1 / sum;
  }

  // The weights of positions from `first` on, rounded to the type of products, (positions, maps); zero where there is
  // none. Other threads see them after a barrier.
  LEWEL_DEVICE void write(T* tile, int first) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (!inside(first + position(j))) tile[position(j) * kPitch + map()] = T{};
    each_unit(first, [&](int j, A u) { tile[position(j) * kPitch + map()] = rounded<T>(weight(u)); });
  }

 private:
  const HeatMaps<T>& maps_;
  int64 row_;
  int k_;
  bool present_;
  A top_, inverse_;
};

}  // namespace lewel::cuda
