// What the passes of the backward hand to each other.
#pragma once

#include "forward.h"

namespace lewel::cpu {

// Parts of the accumulators' workspace, in this order; empty where not needed.
template <class A>
struct Workspace {
  A *maps, *dm;  // A and dMh, then dM: (N, P, K)
  A* weight;     // panels of W, each [K, kPanel], or [K / 2, kPanel] pairs
  A* partial;    // (splits, K, D) partial sums of dW
  A* rounded;    // dM rounded to bf16, as pairs of positions: (N, (P + 1) / 2, K) pairs
  int64_t elements;

  explicit Workspace(const Backward& q);
  Pair* pairs() const { return reinterpret_cast<Pair*>(rounded); }
};

inline bool projects(const Backward& q) {
  return q.d_pixels || q.d_weight.data || q.d_bias.data || (q.d_features && q.project_features);
}

// The tensor that receives dM^T W (E10), null if none does.
inline const Tensor3& projected_gradient(const Backward& q) { return q.project_features ? q.d_features : q.d_pixels; }

// W is cut where the groups of channels are when both gradients go to the features, so that they share their panels.
inline int64_t weight_groups(const Backward& q) { return q.project_features ? q.G : 1; }

// Rows of one pass of the product that sums dW. They are those of a whole batch: shorter parts lower the largest error.
constexpr int64_t kRows = kDepth / 2;

// Splits of the N*P rows summed by dW: a function of the shape, so that sums never depend on the number of threads.
template <class A>
int64_t weight_splits(const Backward& q) {
  const int64_t wanted = (32 + panels<A>(q.D) - 1) / panels<A>(q.D), most = (q.N * q.P + kRows - 1) / kRows;
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
  A** const parts[] = {&maps, &dm, &weight, &partial, &rounded};
  A* next = static_cast<A*>(q.workspace);
  elements = 0;
  for (int i = 0; i < 5; ++i) {
    *parts[i] = next + elements;
    elements += (sizes[i] + 31) / 16 * 16;  // whole vectors may be read from the last row of a part
  }
}

}  // namespace lewel::cpu
