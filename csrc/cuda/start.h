// Starting a kernel by the CUDA runtime.
#pragma once

#include <stdexcept>
#include <string>

namespace lewel::cuda {

// The blocks of a launch.
struct Grid {
  int x, y, z;
};

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would be blamed for it
  throw std::runtime_error(std::string("the cuda backend could not launch a kernel: ") + cudaGetErrorString(error));
}

template <auto KERNEL, class... Arguments>
void start(void* stream, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024)  // more is granted on request
    check(cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  KERNEL<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace lewel::cuda
