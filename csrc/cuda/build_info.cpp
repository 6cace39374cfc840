// What the library was compiled with, for reports and tests. The ops are registered by registration.cpp.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(LEWEL_MODULE, module) {
  module.doc() = "The CUDA kernels of lewel_kernels; importing it registers their ops.";
  module.def("build_info", [] {
    pybind11::dict info;
    info["archs"] = LEWEL_ARCHS;
    info["nvcc"] = LEWEL_NVCC;
#if defined(LEWEL_EMULATED)
    info["emulated"] = true;
#else
    info["emulated"] = false;
#endif
#if defined(__clang__)
    info["compiler"] = __VERSION__;
#else
    info["compiler"] = "GCC " __VERSION__;
#endif
    info["flags"] = LEWEL_FLAGS;
    info["torch"] = LEWEL_TORCH;
    info["torch_abi"] = pybind11::str("{}.{}").format(TORCH_TARGET_VERSION >> 56, TORCH_TARGET_VERSION >> 48 & 0xff);
    return info;
  });
}
