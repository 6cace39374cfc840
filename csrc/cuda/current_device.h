// Where the ops are registered, and where their kernels are launched.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/call.h"

#define LEWEL_LIBRARY lewel_cuda
#define LEWEL_DISPATCH_KEY CUDA

namespace lewel::cuda {

// The device of a tensor, current as long as this lives, and torch's current stream of it.
class CurrentDevice {
 public:
  explicit CurrentDevice(const torch::stable::Tensor& of) : guard_(of.get_device_index()) {
    const auto index = of.get_device_index();
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == 0, "torch has no current CUDA stream");
    // This library has a CUDA runtime of its own, which has not heard of the guard.
    int major = 0;
    STD_TORCH_CHECK(cudaSetDevice(index) == cudaSuccess &&
                        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) == cudaSuccess,
                    "the CUDA runtime does not know the device of the features");
    device_ = {major >= 8 ? 80 : 70, stream};
  }

  const Device* get() const { return &device_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_{};
};

}  // namespace lewel::cuda
