// The ops of the cpu backend over torch's stable ABI: tensors in, params out, nothing computed here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace lewel {
namespace {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;
using MaybeTensor = std::optional<Tensor>;

cpu::DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return cpu::DType::f32;
    case ScalarType::Double: return cpu::DType::f64;
    case ScalarType::Half: return cpu::DType::f16;
    case ScalarType::BFloat16: return cpu::DType::bf16;
    default: STD_TORCH_CHECK(false, "expected a tensor of float32, float64, float16 or bfloat16");
  }
}

cpu::Tensor3 view3(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), dtype_of(t), {t.stride(0), t.stride(1), t.stride(2)}};
}
cpu::Tensor3 view3(const MaybeTensor& t) { return t ? view3(*t) : cpu::Tensor3{}; }
cpu::Matrix matrix(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), dtype_of(t), t.stride(0), t.stride(1)};
}
cpu::Matrix matrix(const MaybeTensor& t) { return t ? matrix(*t) : cpu::Matrix{}; }
cpu::Matrix one_row(const MaybeTensor& t) {
  return t ? cpu::Matrix{static_cast<char*>(t->data_ptr()), dtype_of(*t), 0, t->stride(0)} : cpu::Matrix{};
}

Problem problem(const Tensor& features, const MaybeTensor& pixels, const Tensor& weight, int64_t groups,
                double temperature, double eps) {
  const Tensor& projected = pixels ? *pixels : features;
  // lewel_kernels/checks.py says these better; here they keep a call of the op itself within bounds.
  STD_TORCH_CHECK(features.dim() == 3 && projected.dim() == 3 && weight.dim() == 2,
                  "features and pixels must be (N, channels, P) and the weight (K, D)");
  STD_TORCH_CHECK(projected.size(0) == features.size(0) && projected.size(2) == features.size(2),
                  "pixels must hold the images and positions of features");
  STD_TORCH_CHECK(weight.size(1) == projected.size(1), "the weight must have a column for each channel of the pixels");
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0 && features.size(1) % groups == 0,
                  "num_groups must divide the rows of the weight and the channels of features");
  return {features.size(0), features.size(1), projected.size(1), weight.size(0), features.size(2), groups, temperature,
          eps};
}

void expect_size(const MaybeTensor& t, std::initializer_list<int64_t> sizes, const char* name) {
  if (!t) return;
  bool same = t->dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; same && i < t->dim(); ++i) same = t->size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(same, name, " must have the size that features, weight and num_groups imply");
}

// Faults of fresh pages cost up to half of a large backward: ask for huge ones while the memory is untouched.
void prefer_huge_pages(const MaybeTensor& t) {
#if defined(__linux__)
  if (!t) return;
  const uintptr_t page = 4096, begin = reinterpret_cast<uintptr_t>(t->data_ptr());
  const uintptr_t end = begin + t->numel() * cpu::size_of(dtype_of(*t));
  if (end - begin < (uintptr_t{4} << 20)) return;
  madvise(reinterpret_cast<void*>((begin + page - 1) / page * page), (end - begin) / page * page - page, MADV_HUGEPAGE);
#else
  (void)t;
#endif
}

template <class A>
Tensor workspace(const Tensor& like, int64_t elements, const char* purpose) {
  // Torch prints what it cannot allocate, and throws the name of a file instead: so it is asked for what is to be had.
  cpu::allocate(elements * sizeof(A), purpose);
  const std::optional<ScalarType> type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor memory = torch::stable::new_empty(like, {&elements, 1}, type);
  prefer_huge_pages(memory);
  return memory;
}

void forward(const Tensor& features, const MaybeTensor& pixels, const Tensor& weight, const MaybeTensor& bias,
             int64_t groups, double temperature, double eps, const Tensor& pooled, const MaybeTensor& maps,
             const Tensor& heat, const Tensor& norm) {
  prefer_huge_pages(pooled);
  Forward q{problem(features, pixels, weight, groups, temperature, eps)};
  expect_size(bias, {q.K}, "bias");
  q.features = view3(features);
  q.pixels = view3(pixels ? *pixels : features);
  q.weight = matrix(weight);
  q.bias = one_row(bias);
  q.pooled = view3(pooled);
  q.maps = view3(maps);
  q.heat = view3(heat);
  q.norm = norm.data_ptr();
  const auto run = [&](auto accumulator) {
    using A = decltype(accumulator);
    const Tensor memory = workspace<A>(features, cpu::forward_workspace<A>(q), "the workspace of the forward; fewer maps or channels take less");
    q.workspace = memory.data_ptr();
    cpu::forward<A>(q);
  };
  q.features.dtype == cpu::DType::f64 ? run(double{}) : run(float{});
}

void backward(const Tensor& grad_pooled, const MaybeTensor& grad_maps, const Tensor& features,
              const MaybeTensor& pixels, const Tensor& weight, const Tensor& heat, const Tensor& norm, int64_t groups,
              double temperature, double eps, const MaybeTensor& d_features, const MaybeTensor& d_pixels,
              const MaybeTensor& d_weight, const MaybeTensor& d_bias) {
  prefer_huge_pages(d_features);
  prefer_huge_pages(d_pixels);
  Backward q{problem(features, pixels, weight, groups, temperature, eps)};
  expect_size(grad_pooled, {q.N, q.L(), q.C}, "grad_pooled");
  expect_size(grad_maps, {q.N, q.K, q.P}, "grad_maps");
  expect_size(heat, {q.N, q.K, q.P}, "heat");
  expect_size(norm, {q.N, q.P}, "norm");
  q.grad_pooled = view3(grad_pooled);
  q.grad_maps = view3(grad_maps);
  q.features = view3(features);
  q.pixels = view3(pixels ? *pixels : features);
  q.heat = view3(heat);
  q.weight = matrix(weight);
  q.norm = norm.data_ptr();
  q.d_features = view3(d_features);
  q.d_pixels = view3(d_pixels);
  q.d_weight = matrix(d_weight);
  q.d_bias = one_row(d_bias);
  q.project_features = !pixels;
  const auto run = [&](auto accumulator) {
    using A = decltype(accumulator);
    const Tensor memory = workspace<A>(features, cpu::backward_workspace<A>(q),
                                       "the workspace of the backward; a smaller batch takes less");
    q.workspace = memory.data_ptr();
    cpu::backward<A>(q);
  };
  q.features.dtype == cpu::DType::f64 ? run(double{}) : run(float{});
}

}  // namespace

// Thread t of T starts with the t-th of T equal shares, so that a task of one pass finds in its caches what the task of
// the same images left there in the pass before; then it helps the others, because threads are slowed down by other
// processes. A quarter less time than one common counter where cores share no cache.
void cpu::run_tasks(int64_t tasks, void (*work)(void*, int64_t), void* context) {
  struct alignas(64) Counter {
    std::atomic<int64_t> value;
  };
  const int64_t shares = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  const auto begin = [&](int64_t share) { return tasks * share / shares; };
  const Memory counters = allocate(shares * sizeof(Counter), "the counters of the threads");
  Counter* const next = static_cast<Counter*>(counters.get());
  for (int64_t t = 0; t < shares; ++t) new (next + t) Counter{{begin(t)}};
  std::atomic_flag thrown = ATOMIC_FLAG_INIT;
  std::exception_ptr error;
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t) {
    try {
      for (int64_t i = 0; i < shares; ++i) {
        const int64_t share = (first + i) % shares;
        for (int64_t task; (task = next[share].value.fetch_add(1, std::memory_order_relaxed)) < begin(share + 1);)
          work(context, task);
      }
    } catch (...) {  // it must not leave the function of a thread
      if (!thrown.test_and_set()) error = std::current_exception();
      for (int64_t t = 0; t < shares; ++t) next[t].value.store(tasks, std::memory_order_relaxed);  // nothing is left
    }
    Arena::of_this_thread().trim();
  });
  if (error) std::rethrow_exception(error);
}

STABLE_TORCH_LIBRARY_FRAGMENT(lewel_native, library) {
  library.def(
      "cpu_forward(Tensor features, Tensor? pixels, Tensor weight, Tensor? bias, int num_groups, float temperature,"
      " float eps, Tensor(a!) pooled, Tensor(b!)? maps, Tensor(c!) heat, Tensor(d!) norm) -> ()");
  library.def(
      "cpu_backward(Tensor grad_pooled, Tensor? grad_maps, Tensor features, Tensor? pixels, Tensor weight, Tensor heat,"
      " Tensor norm, int num_groups, float temperature, float eps, Tensor(a!)? d_features, Tensor(b!)? d_pixels,"
      " Tensor(c!)? d_weight, Tensor(d!)? d_bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lewel_native, CPU, library) {
  library.impl("cpu_forward", TORCH_BOX(&forward));
  library.impl("cpu_backward", TORCH_BOX(&backward));
}

}  // namespace lewel
