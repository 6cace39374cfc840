// What one call of the op is given. Free of torch: registration.cpp fills these from tensors.
#pragma once

#include "cpu/blocks.h"

namespace lewel {

// Sizes in the notation of the equations E1-E10.
struct Problem {
  int64_t N, C, D, K, P, G;
  double temperature, eps;

  int64_t L() const { return K / G; }
  int64_t group_channels() const { return C / G; }
};

struct Forward : Problem {
  cpu::Tensor3 features;  // (N, C, P)
  cpu::Tensor3 pixels;    // (N, D, P), the features themselves where they are projected
  cpu::Matrix weight;     // (K, D)
  cpu::Matrix bias;       // (1, K), data null without a bias
  cpu::Tensor3 pooled;    // (N, L, C)
  cpu::Tensor3 maps;      // (N, K, P), null unless wanted
  cpu::Tensor3 heat;      // (N, K, P)
  void* norm;             // (N, P) contiguous accumulators
  void* workspace;        // forward_workspace() accumulators
};

struct Backward : Problem {
  cpu::Tensor3 grad_pooled;  // (N, L, C)
  cpu::Tensor3 grad_maps;    // (N, K, P), null if the maps were not returned
  cpu::Tensor3 features, pixels, heat;
  cpu::Matrix weight;
  const void* norm;
  cpu::Tensor3 d_features, d_pixels;  // null where not needed
  cpu::Matrix d_weight, d_bias;       // data null where not needed
  bool project_features;              // pixels are the features: d_features receives the term of the projection too
  void* workspace;                    // backward_workspace() accumulators
};

}  // namespace lewel
