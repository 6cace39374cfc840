// The ops of the cuda backend over torch's stable ABI: tensors in, views out, nothing computed here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <exception>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/call.h"
#include "cuda/current_device.h"

namespace lewel::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

Number number_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Number::f32;
    case ScalarType::Double: return Number::f64;
    case ScalarType::Half: return Number::f16;
    case ScalarType::BFloat16: return Number::bf16;
    default: STD_TORCH_CHECK(false, "expected a tensor of float32, float64, float16 or bfloat16");
  }
}

View view(const Tensor& t) {
  View x;
  x.data = t.data_ptr();
  x.number = number_of(t);
  for (int64_t i = 0; i < t.dim() && i < 3; ++i) x.size[i] = t.size(i), x.stride[i] = t.stride(i);
  return x;
}
View view(const MaybeTensor& t) { return t ? view(*t) : View{}; }

// lewel_kernels/checks.py says these better; here they keep a call of the op itself within bounds.
void expect(const MaybeTensor& t, std::initializer_list<int64_t> sizes, const Tensor& features, const char* name) {
  if (!t) return;
  bool same = t->dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; same && i < t->dim(); ++i) same = t->size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(same, name, " must have the size that features, weight and num_groups imply");
  STD_TORCH_CHECK(t->device() == features.device(), name, " must be on the device of features");
}

void expect_type(const MaybeTensor& t, ScalarType type, const char* name) {
  STD_TORCH_CHECK(!t || t->scalar_type() == type, name, " must have the type that the features imply");
}

void expect_contiguous(const MaybeTensor& t, const char* name) {
  STD_TORCH_CHECK(!t || t->is_contiguous(), name, " must be contiguous");
}

// A gradient is as large and of the type of what it belongs to; and dense, for the sums of parts run through its
// memory.
void expect_gradient(const MaybeTensor& t, const Tensor& of, bool summed, const char* name) {
  if (!t) return;
  bool same = t->dim() == of.dim();
  for (int64_t i = 0; same && i < t->dim(); ++i) same = t->size(i) == of.size(i);
  STD_TORCH_CHECK(same && t->device() == of.device(), name, " must have the size and the device of its input");
  for (int64_t i = 0; i < t->dim(); ++i)
    STD_TORCH_CHECK(t->size(i) == 1 || t->stride(i) != 0, name, " must have memory for each of its numbers");
  expect_type(t, of.scalar_type(), name);
  const bool transposed = t->dim() == 2 && t->stride(0) == 1 && t->stride(1) == t->size(0);
  if (summed) STD_TORCH_CHECK(t->is_contiguous() || transposed, name, " must be dense");
}

void fill(Call& q, const Tensor& features, const MaybeTensor& pixels, const Tensor& weight, const MaybeTensor& bias,
          const MaybeTensor& scale, const MaybeTensor& shift, const Tensor& heat, const Tensor& norm, int64_t groups,
          double temperature, double eps) {
  const Tensor& projected = pixels ? *pixels : features;
  STD_TORCH_CHECK(features.dim() == 3 && weight.dim() == 2, "features must be (N, C, P) and the weight (K, D)");
  const int64_t N = features.size(0), C = features.size(1), P = features.size(2), K = weight.size(0),
                D = weight.size(1);
  STD_TORCH_CHECK(N > 0 && C > 0 && P > 0 && K > 0 && D > 0, "there must be images, channels, positions and maps");
  STD_TORCH_CHECK(groups > 0 && K % groups == 0 && C % groups == 0,
                  "num_groups must divide the rows of the weight and the channels of features");
  expect(projected, {N, D, P}, features, pixels ? "pixels" : "features, which are projected,");
  expect(weight, {K, D}, features, "weight");
  expect(bias, {K}, features, "bias");
  expect(scale, {D}, features, "scale");
  expect(shift, {D}, features, "shift");
  expect(heat, {N, K, P}, features, "heat");
  expect(norm, {N, P}, features, "norm");
  const ScalarType type = features.scalar_type(), acc = type == ScalarType::Double ? type : ScalarType::Float;
  for (const MaybeTensor& t : {MaybeTensor(projected), MaybeTensor(weight), bias, MaybeTensor(heat)})
    expect_type(t, type, "pixels, weight, bias and heat");
  for (const MaybeTensor& t : {scale, shift, MaybeTensor(norm)}) expect_type(t, acc, "scale, shift and norm");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift are given together");
  for (const MaybeTensor& t : {scale, shift, MaybeTensor(norm)}) expect_contiguous(t, "scale, shift and norm");
  STD_TORCH_CHECK((heat.stride(1) == 1 || K == 1) && (heat.stride(2) == K || P == 1) && heat.stride(0) == K * P,
                  "heat must lie in memory as (N, P, K)");
  q.features = view(features);
  q.pixels = view(projected);
  q.weight = view(weight);
  q.bias = view(bias);
  q.scale = view(scale);
  q.shift = view(shift);
  q.heat = view(heat);
  q.norm = view(norm);
  q.groups = groups;
  q.temperature = temperature;
  q.eps = eps;
}

// Torch prints what it cannot allocate, and throws the name of a file instead.
Tensor allocate(const Tensor& like, int64_t bytes) {
  try {
    return torch::stable::new_empty(like, std::vector<int64_t>{bytes}, std::optional<ScalarType>(ScalarType::Byte));
  } catch (const std::exception&) {
    throw std::runtime_error("out of memory: " + std::to_string(bytes) +
                             " bytes for the workspace of a call; a smaller batch takes less");
  }
}

// Runs on the device of the features and its current stream, with memory for what kernels pass to each other.
template <class Q, class Run>
void run(const Q& q, const Tensor& features, Run run_kernels) {
  const CurrentDevice device(features);
  Workspace counted;
  run_kernels(counted, nullptr);
  const Tensor memory = allocate(features, counted.bytes());
  Workspace workspace(memory.data_ptr());
  run_kernels(workspace, device.get());
}

template <class Use>
void with_storage(Number number, Use use) {
  switch (number) {
    case Number::f16: return use(Half{});
    case Number::bf16: return use(BFloat16{});
    case Number::f64: return use(double{});
    default: return use(float{});
  }
}

void forward_op(const Tensor& features, const MaybeTensor& pixels, const Tensor& weight, const MaybeTensor& bias,
                const MaybeTensor& scale, const MaybeTensor& shift, int64_t groups, double temperature, double eps,
                const Tensor& pooled, const MaybeTensor& maps, const Tensor& heat, const Tensor& norm) {
  Forward q;
  fill(q, features, pixels, weight, bias, scale, shift, heat, norm, groups, temperature, eps);
  expect(pooled, {q.N(), q.L(), q.C()}, features, "pooled");
  expect(maps, {q.N(), q.K(), q.P()}, features, "maps");
  expect_contiguous(pooled, "pooled");
  expect_contiguous(maps, "maps");
  q.pooled = view(pooled);
  q.maps = view(maps);
  with_storage(q.features.number, [&](auto type) {
    run(q, features,
        [&](Workspace& workspace, const Device* device) { forward<decltype(type)>(q, workspace, device); });
  });
}

void backward_op(const Tensor& grad_pooled, const MaybeTensor& grad_maps, const Tensor& features,
                 const MaybeTensor& pixels, const Tensor& weight, const MaybeTensor& scale, const MaybeTensor& shift,
                 const Tensor& heat, const Tensor& norm, int64_t groups, double temperature, double eps,
                 const MaybeTensor& d_features, const MaybeTensor& d_pixels, const MaybeTensor& d_weight,
                 const MaybeTensor& d_bias, const MaybeTensor& d_scale, const MaybeTensor& d_shift) {
  Backward q;
  fill(q, features, pixels, weight, std::nullopt, scale, shift, heat, norm, groups, temperature, eps);
  expect(grad_pooled, {q.N(), q.L(), q.C()}, features, "grad_pooled");
  expect(grad_maps, {q.N(), q.K(), q.P()}, features, "grad_maps");
  expect_gradient(d_features, features, false, "d_features");
  if (pixels) expect_gradient(d_pixels, *pixels, false, "d_pixels");
  expect_gradient(d_weight, weight, true, "d_weight");
  if (d_bias) {
    expect(d_bias, {q.K()}, features, "d_bias");
    expect_type(d_bias, features.scalar_type(), "d_bias");
    expect_contiguous(d_bias, "d_bias");
  }
  STD_TORCH_CHECK((pixels || !d_pixels) && (scale || (!d_scale && !d_shift)), "a gradient has no input");
  if (scale) {
    expect_gradient(d_scale, *scale, true, "d_scale");
    expect_gradient(d_shift, *shift, true, "d_shift");
  }
  q.grad_pooled = view(grad_pooled);
  q.grad_maps = view(grad_maps);
  q.d_features = view(d_features);
  q.d_pixels = view(d_pixels);
  q.d_weight = view(d_weight);
  q.d_bias = view(d_bias);
  q.d_scale = view(d_scale);
  q.d_shift = view(d_shift);
  q.project_features = !pixels;
  with_storage(q.features.number, [&](auto type) {
    run(q, features,
        [&](Workspace& workspace, const Device* device) { backward<decltype(type)>(q, workspace, device); });
  });
}

}  // namespace

// Both schemas name what is written; the results are allocated by lewel_kernels/cuda.py.
STABLE_TORCH_LIBRARY_FRAGMENT(LEWEL_LIBRARY, library) {
  library.def(
      "forward(Tensor features, Tensor? pixels, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift,"
      " int num_groups, float temperature, float eps, Tensor(a!) pooled, Tensor(b!)? maps, Tensor(c!) heat,"
      " Tensor(d!) norm) -> ()");
  library.def(
      "backward(Tensor grad_pooled, Tensor? grad_maps, Tensor features, Tensor? pixels, Tensor weight,"
      " Tensor? scale, Tensor? shift, Tensor heat, Tensor norm, int num_groups, float temperature, float eps,"
      " Tensor(a!)? d_features, Tensor(b!)? d_pixels, Tensor(c!)? d_weight, Tensor(d!)? d_bias,"
      " Tensor(e!)? d_scale, Tensor(f!)? d_shift) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(LEWEL_LIBRARY, LEWEL_DISPATCH_KEY, library) {
  library.impl("forward", TORCH_BOX(&forward_op));
  library.impl("backward", TORCH_BOX(&backward_op));
}

}  // namespace lewel::cuda
