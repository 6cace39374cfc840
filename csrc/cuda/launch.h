// Launching a kernel: on a stream of a GPU, or on the emulated one.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/device.h"
#if !defined(LEWEL_EMULATED)
#include <cuda_runtime_api.h>
#endif

namespace lewel::cuda {

#if defined(LEWEL_EMULATED)

struct Device {
  int arch = LEWEL_EMULATED;
};

template <auto KERNEL, class... Arguments>
void launch(const Device&, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  emulation::run(grid, threads, shared_bytes, [&] { KERNEL(arguments...); });
}

#else

struct Grid {
  int x, y, z;
};

// Where kernels are launched.
struct Device {
  int index;
  int arch;  // of the instructions of its kernels: 70 or 80
  cudaStream_t stream;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("the cuda backend could not launch a kernel: ") + cudaGetErrorString(error));
}

inline Device device_of(int index, void* stream) {
  check(cudaSetDevice(index));  // this library may have a runtime of its own, which has not heard of torch's choice
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  return {index, major >= 8 ? 80 : 70, static_cast<cudaStream_t>(stream)};
}

template <auto KERNEL, class... Arguments>
void launch(const Device& device, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024)  // more is granted on request
    check(cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  KERNEL<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, device.stream>>>(arguments...);
  check(cudaGetLastError());
}

#endif

}  // namespace lewel::cuda
