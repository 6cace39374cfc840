// Launching a kernel: on a stream of a GPU, or on the emulated one.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/call.h"
#include "cuda/device.h"

namespace lewel::cuda {

#if defined(LEWEL_EMULATED)

template <auto KERNEL, class... Arguments>
void launch(const Device&, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  emulation::run(grid, threads, shared_bytes, [&] { KERNEL(arguments...); });
}

#else

struct Grid {
  int x, y, z;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("the cuda backend could not launch a kernel: ") + cudaGetErrorString(error));
}

template <auto KERNEL, class... Arguments>
void launch(const Device& device, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024)  // more is granted on request
    check(cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  KERNEL<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, static_cast<cudaStream_t>(device.stream)>>>(arguments...);
  check(cudaGetLastError());
}

#endif

}  // namespace lewel::cuda
