// What a call of the op is given. Free of torch: registration.cpp fills these from tensors.
#pragma once

#include <string>

#include "cuda/numbers.h"

namespace lewel::cuda {

// A tensor; data is null where there is none.
struct View {
  void* data = nullptr;
  Number number = Number::f32;
  int64 size[3] = {}, stride[3] = {};
};

// Sizes in the notation of the equations.
struct Call {
  View features;  // (N, C, P)
  View pixels;    // (N, D, P), the features themselves where they are projected
  View weight;    // (K, D)
  View bias;      // (K,)
  View scale;     // (D,) contiguous
  View shift;     // (D,) contiguous
  View heat;      // (N, K, P), in memory (N, P, K)
  View norm;      // (N, P) contiguous
  int64 groups;
  double temperature, eps;

  int64 N() const { return features.size[0]; }
  int64 C() const { return features.size[1]; }
  int64 P() const { return features.size[2]; }
  int64 K() const { return weight.size[0]; }
  int64 D() const { return weight.size[1]; }
  int64 L() const { return K() / groups; }
  int64 width() const { return C() / groups; }
  int64 rows() const { return N() * P(); }
};

struct Forward : Call {
  View pooled;  // (N, L, C) contiguous
  View maps;    // (N, K, P) contiguous
};

struct Backward : Call {
  View grad_pooled;           // (N, L, C)
  View grad_maps;             // (N, K, P)
  View d_features, d_pixels;  // null where not needed
  View d_weight, d_bias, d_scale, d_shift;
  bool project_features;  // pixels are the features: d_features receives the term of the projection too
};

// Memory that kernels pass numbers through, handed out piece by piece; without memory, only counted.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <class X>
  X* take(int64 count) {
    const int64 at = bytes_;
    bytes_ += (count * static_cast<int64>(sizeof(X)) + 255) / 256 * 256;
    return reinterpret_cast<X*>(memory_ + at);
  }
  int64 bytes() const { return bytes_; }

 private:
  char* memory_;
  int64 bytes_ = 0;
};

// Where kernels are launched.
struct Device {
  int arch;                            // whose instructions they have: 70, or 80 from sm_80 on
  void* stream = nullptr;              // a cudaStream_t
  std::string* description = nullptr;  // where launches are described instead
};

// Launches the kernels of a call, or, without a device, only counts the memory that they need.
template <class T>
void forward(const Forward& call, Workspace& workspace, const Device* device);
template <class T>
void backward(const Backward& call, Workspace& workspace, const Device* device);

}  // namespace lewel::cuda
