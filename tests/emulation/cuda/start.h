// In the place of csrc/cuda/start.h: kernels are started on the emulated machine, which has no streams.
#pragma once

#include "machine.h"

namespace lewel::cuda {

template <auto KERNEL, class... Arguments>
void start(void*, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  emulation::run(grid, threads, shared_bytes, [&] { KERNEL(arguments...); });
}

}  // namespace lewel::cuda
