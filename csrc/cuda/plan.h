// What the launches of the forward and of the backward share: from tensors to the arguments of kernels.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/forward_kernels.h"
#include "cuda/launch.h"

namespace lewel::cuda {

// Whether neighbouring positions lie together in (N, channels, P), rather than neighbouring channels.
inline bool in_planes(const View& x) { return x.stride[1] > x.stride[2] && x.size[2] > 1; }

// Whether 16 bytes of (N, channels, P) may be loaded or stored at a time, along `run` numbers of its fast axis.
inline bool moves_wide(const View& x, int size, bool planes, int64 run) {
  const int fast = planes ? 2 : 1, slow = planes ? 1 : 2;
  return run % (16 / size) == 0 &&
         moves_wide(x.data, size, x.stride[fast], x.stride[slow], x.size[slow], x.stride[0], x.size[0]);
}

// `run`: of channels that are loaded together, those of a group or all.
template <class T>
Images<T> images_of(const View& x, int64 run) {
  const bool planes = in_planes(x);
  return {static_cast<const T*>(x.data), x.stride[0], x.stride[1], x.stride[2],
          moves_wide(x, sizeof(T), planes, planes ? x.size[2] : run)};
}

template <class T>
Weight<T> weight_of(const View& x) {
  return {static_cast<const T*>(x.data), x.stride[0], x.stride[1],
          moves_wide(x.data, sizeof(T), x.stride[1], x.stride[0], x.size[0], 0, 1)};
}

template <class T>
HeatMaps<T> heat_maps_of(const Call& q) {
  using A = Accumulator<T>;
  constexpr double kLog2E = 1.4426950408889634;
  return {static_cast<const T*>(q.heat.data),
          static_cast<const A*>(q.norm.data),
          static_cast<int>(q.P()),
          static_cast<int>(q.K()),
          static_cast<A>(q.eps),
          static_cast<A>(kLog2E / q.temperature)};
}

template <class T>
Affine<Accumulator<T>> affine_of(const Call& q) {
  using A = Accumulator<T>;
  return {static_cast<const A*>(q.scale.data), static_cast<const A*>(q.shift.data)};
}

inline Mixed mixed(const View& x) { return {x.data, x.number}; }

// Positions that a block of the pooling kernels sees at once: up to these a softmax needs no pass of its own.
constexpr int64 kPositions = 64;

// Maps of a group that a block of the pooling kernels sees at once; a float64 takes too much memory for more.
constexpr int kFewMaps = 32;
template <class T>
constexpr int kManyMaps = sizeof(T) == 8 ? kFewMaps : 64;

inline void expect_room(const Call& q) {
  const auto limit = [](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(std::string("the cuda backend takes ") + what);
  };
  // Rows of a tile are counted beyond the last: up to 127 of them.
  limit(q.rows() <= (int64{1} << 31) - 256, "at most 2^31 - 256 positions in a batch; split the batch");
  limit(q.C() < int64{1} << 31 && q.D() < int64{1} << 31 && q.K() < int64{1} << 31,
        "fewer than 2^31 channels and maps");
  limit(q.K() < 65536, "fewer than 65536 maps");
}

template <class T>
Softmax<Accumulator<T>> take_softmax(const Call& q, Workspace& workspace) {
  using A = Accumulator<T>;
  A* const top = workspace.take<A>(q.N() * q.K());
  return {top, workspace.take<A>(q.N() * q.K())};
}

template <class T>
void launch_softmax(const Call& q, const Softmax<Accumulator<T>>& to, const Device& device) {
  const Grid grid{static_cast<int>(q.N()), static_cast<int>(ceil_div(q.K(), SoftmaxShape::kMaps)), 1};
  launch<softmax_kernel<T>>(device, grid, SoftmaxShape::kThreads, SoftmaxShape::bytes<Accumulator<T>>(),
                            heat_maps_of<T>(q), to);
}

// Calls use(bool_constant): a constant for what is known only now.
template <class Use>
void with(bool x, Use use) {
  x ? use(bool_constant<true>{}) : use(bool_constant<false>{});
}

}  // namespace lewel::cuda
