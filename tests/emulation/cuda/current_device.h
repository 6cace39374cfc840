// In the place of csrc/cuda/current_device.h: the ops take tensors of the CPU, by a library for each emulated GPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "cuda/call.h"

#if LEWEL_EMULATED == 80
#define LEWEL_LIBRARY lewel_emulated_sm80
#else
#define LEWEL_LIBRARY lewel_emulated_sm70
#endif
#define LEWEL_DISPATCH_KEY CPU

namespace lewel::cuda {

class CurrentDevice {
 public:
  explicit CurrentDevice(const torch::stable::Tensor&) {}
  const Device* get() const { return &device_; }

 private:
  Device device_{LEWEL_EMULATED};
};

}  // namespace lewel::cuda
