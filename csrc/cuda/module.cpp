// What the library was compiled with, and what a call would launch: for reports and tests. The ops are registered by
// registration.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/call.h"

namespace {

using namespace lewel::cuda;

// A tensor: address, place of its dtype in `Number`, sizes, strides.
using Described = std::optional<std::tuple<uint64_t, int, std::vector<int64>, std::vector<int64>>>;

View view(const Described& tensor) {
  View x;
  if (!tensor) return x;
  const auto& [address, number, size, stride] = *tensor;
  x.data = reinterpret_cast<void*>(address);
  x.number = static_cast<Number>(number);
  for (size_t i = 0; i < size.size() && i < 3; ++i) x.size[i] = size[i], x.stride[i] = stride[i];
  return x;
}

// The launches of a forward and of a backward for all gradients, a line each. Nobody reads what is at the addresses.
std::tuple<std::string, std::string> describe(const Described& features, const Described& pixels,
                                              const Described& weight, const Described& bias, const Described& scale,
                                              const Described& pooled, const Described& maps, int64 groups, int arch) {
  Backward q;
  q.features = view(features);
  q.project_features = !pixels;
  q.pixels = view(pixels ? pixels : features);
  q.weight = view(weight);
  q.bias = view(bias);
  q.scale = q.shift = view(scale);
  q.groups = groups;
  q.temperature = q.eps = 1;
  q.heat.data = q.norm.data = reinterpret_cast<void*>(256);
  Forward first;
  static_cast<Call&>(first) = q;
  first.pooled = q.grad_pooled = view(pooled);
  first.maps = q.grad_maps = view(maps);
  q.d_features = q.features, q.d_pixels = view(pixels), q.d_weight = q.weight, q.d_bias = q.bias;
  q.d_scale = q.d_shift = q.scale;
  std::string forward_lines, backward_lines;
  const auto both = [&](auto type) {
    using T = decltype(type);
    Workspace workspace(reinterpret_cast<void*>(256));
    Device device{arch};
    device.description = &forward_lines;
    forward<T>(first, workspace, &device);
    device.description = &backward_lines;
    backward<T>(q, workspace, &device);
  };
  switch (q.features.number) {
    case Number::f16: both(Half{}); break;
    case Number::bf16: both(BFloat16{}); break;
    case Number::f64: both(double{}); break;
    default: both(float{});
  }
  return {forward_lines, backward_lines};
}

}  // namespace

PYBIND11_MODULE(LEWEL_MODULE, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The CUDA kernels of lewel_kernels; importing it registers their ops.";
  module.def("build_info", [] {
    pybind11::dict info;
    info["archs"] = LEWEL_ARCHS;
    info["nvcc"] = LEWEL_NVCC;
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
  module.def("describe", &describe, pybind11::arg("features"), pybind11::arg("pixels"), pybind11::arg("weight"),
             pybind11::arg("bias"), pybind11::arg("scale"), pybind11::arg("pooled"), pybind11::arg("maps"),
             pybind11::arg("groups"), pybind11::arg("arch"));
}
