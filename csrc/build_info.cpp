// What the extension was compiled with, for reports and tests. The ops are registered by registration.cpp.
#include <pybind11/pybind11.h>

#include "cpu/vector.h"

PYBIND11_MODULE(_lewel_native, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The compiled kernels of lewel_kernels; importing it registers torch.ops.lewel_native.";
  module.def("build_info", [] {
    pybind11::dict info;
    info["isa"] = LEWEL_ISA;
    info["vector_bytes"] = lewel::cpu::kVectorBytes;
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
