// The launches of the backward: grids and arguments of the kernels in *_backward_kernels.h.
#pragma once

#include "cuda/plan.h"
#include "cuda/pool_backward_kernels.h"
#include "cuda/project_backward_kernels.h"

namespace lewel::cuda {

template <class Part>
void launch_sum(const Part* parts, int64 count, const View& to, int64 size, const Device& device) {
  const Grid grid{static_cast<int>(ceil_div(size, kSumThreads)), 1, 1};
  launch<sum_kernel<Part>>(device, grid, kSumThreads, 0, parts, mixed(to), static_cast<int>(count), size);
}

template <class T, int MAPS>
void launch_pool_bwd(const PoolBackward<T>& both, const Backward& q, const Device& device) {
  with(in_planes(q.features), [&](auto planes) {
    using Shape = PoolBackwardShape<T, MAPS, decltype(planes)::value>;
    const int64 tiles = ceil_div(q.P(), Shape::kPositions), blocks = ceil_div(q.L(), MAPS);
    const auto launch_one = [&](const PoolBackward<T>& arguments) {
      const Grid grid{static_cast<int>(q.N() * tiles), static_cast<int>(q.groups * (arguments.d_maps ? blocks : 1)), 1};
      launch<pool_bwd_kernel<T, MAPS, decltype(planes)::value>>(device, grid, Shape::kThreads,
                                                                Shape::bytes(stages_on<T>(device.arch)), arguments);
    };
    if (blocks == 1 || !both.d_maps || !both.d_features.data) return launch_one(both);
    PoolBackward<T> maps = both, features = both;
    maps.d_features.data = nullptr;
    features.d_maps = nullptr;
    launch_one(maps);
    launch_one(features);
  });
}

template <class T>
void launch_pixels_bwd(const PixelsBackward<T>& arguments, const Backward& q, const Device& device) {
  using Shape = PixelsBackwardShape<T>;
  const Grid grid{static_cast<int>(ceil_div(q.rows(), Shape::kRows)),
                  static_cast<int>(ceil_div(q.D(), Shape::kColumns)), 1};
  with(q.scale.data, [&](auto e0) {
    launch<pixels_bwd_kernel<T, decltype(e0)::value>>(
        device, grid, Shape::kThreads, Shape::bytes(stages_on<T>(device.arch), decltype(e0)::value), arguments);
  });
}

template <class T, int MAPS>
void launch_weight_bwd(const WeightBackward<T>& arguments, const Backward& q, const Device& device) {
  with(in_planes(q.pixels), [&](auto planes) {
    with(q.scale.data, [&](auto e0) {
      constexpr bool kPlanes = decltype(planes)::value;
      using Shape = WeightBackwardShape<T, MAPS, kPlanes>;
      const Grid grid{arguments.d_weight ? static_cast<int>(ceil_div(q.D(), Shape::kColumns)) : 1,
                      static_cast<int>(ceil_div(q.K(), MAPS)), static_cast<int>(arguments.parts.count)};
      launch<weight_bwd_kernel<T, MAPS, kPlanes, decltype(e0)::value>>(
          device, grid, Shape::kThreads, Shape::bytes(stages_on<T>(device.arch)), arguments);
    });
  });
}

// dM (R, K) from E6-E9, in memory of the workspace, or null where nothing of the projection is wanted.
template <class T>
const T* maps_backward(const Backward& q, bool projection, Workspace& workspace, const Device* device) {
  using A = Accumulator<T>;
  const int64 nk = q.N() * q.K(), tiles = ceil_div(q.P(), kPositions);
  Softmax<A> softmax{};
  if (projection || tiles > 1) softmax = take_softmax<T>(q, workspace);
  A* const d_maps = projection ? workspace.take<A>(q.rows() * q.K()) : nullptr;
  A* const deltas = projection ? workspace.take<A>(tiles * nk) : nullptr;
  A* const delta = projection && tiles > 1 ? workspace.take<A>(nk) : deltas;
  T* const d_heat = projection ? workspace.take<T>(q.rows() * q.K()) : nullptr;
  if (!device) return d_heat;

  if (tiles > 1) launch_softmax<T>(q, softmax, *device);
  const bool d_planes = in_planes(q.d_features);
  const PoolBackward<T> arguments{images_of<T>(q.features, q.width()),
                                  heat_maps_of<T>(q),
                                  softmax,
                                  mixed(q.grad_pooled),
                                  q.grad_pooled.stride[0],
                                  q.grad_pooled.stride[1],
                                  q.grad_pooled.stride[2],
                                  q.grad_pooled.number == kNumber<T> && q.width() % (16 / sizeof(T)) == 0 &&
                                      moves_wide(q.grad_pooled.data, sizeof(T), q.grad_pooled.stride[2],
                                                 q.grad_pooled.stride[1], q.L(), q.grad_pooled.stride[0], q.N()),
                                  mixed(q.grad_maps),
                                  q.grad_maps.stride[0],
                                  q.grad_maps.stride[1],
                                  q.grad_maps.stride[2],
                                  mixed(q.d_features),
                                  q.d_features.stride[0],
                                  q.d_features.stride[1],
                                  q.d_features.stride[2],
                                  !d_planes && moves_wide(q.d_features, sizeof(T), d_planes, q.width()),
                                  d_planes,
                                  d_maps,
                                  deltas,
                                  static_cast<int>(q.N()),
                                  static_cast<int>(q.C()),
                                  static_cast<int>(q.width()),
                                  static_cast<int>(q.L())};
  if (projection || q.d_features.data)
    q.L() <= kFewMaps ? launch_pool_bwd<T, kFewMaps>(arguments, q, *device)
                      : launch_pool_bwd<T, kManyMaps<T>>(arguments, q, *device);
  if (!projection) return nullptr;
  if (tiles > 1) {
    View total;
    total.data = delta, total.number = kNumber<A>;
    launch_sum(deltas, tiles, total, nk, *device);
  }
  const MapsBackward<T> maps{
      heat_maps_of<T>(q),        softmax, delta, d_maps, d_heat, Divider::of(q.P()), static_cast<A>(1 / q.temperature),
      static_cast<int>(q.rows())};
  const Grid grid{static_cast<int>(ceil_div(q.rows(), kMapsBackwardThreads / 32)), 1, 1};
  launch<maps_bwd_kernel<T>>(*device, grid, kMapsBackwardThreads, 0, maps);
  return d_heat;
}

template <class T>
void pixels_backward(const Backward& q, const T* d_heat, Workspace& workspace, const Device* device) {
  using A = Accumulator<T>;
  const View& to = q.project_features ? q.d_features : q.d_pixels;
  if (!to.data && !q.d_scale.data && !q.d_shift.data) return;
  const bool affine = q.d_scale.data || q.d_shift.data, planes = in_planes(to);
  const int64 tiles = ceil_div(q.rows(), PixelsBackwardShape<T>::kRows);
  A* const d_scale = affine ? workspace.take<A>(tiles * q.D()) : nullptr;
  A* const d_shift = affine ? workspace.take<A>(tiles * q.D()) : nullptr;
  if (!device) return;
  const PixelsBackward<T> arguments{d_heat,
                                    weight_of<T>(q.weight),
                                    images_of<T>(q.pixels, q.D()),
                                    affine_of<T>(q),
                                    Divider::of(q.P()),
                                    mixed(to),
                                    to.stride[0],
                                    to.stride[1],
                                    to.stride[2],
                                    !planes && moves_wide(to, sizeof(T), planes, 16 / sizeof(T)),
                                    planes,
                                    q.project_features,
                                    d_scale,
                                    d_shift,
                                    static_cast<int>(q.rows()),
                                    static_cast<int>(q.K()),
                                    static_cast<int>(q.D())};
  launch_pixels_bwd(arguments, q, *device);
  if (q.d_scale.data) launch_sum(d_scale, tiles, q.d_scale, q.D(), *device);
  if (q.d_shift.data) launch_sum(d_shift, tiles, q.d_shift, q.D(), *device);
}

template <class T, int MAPS>
void weight_backward(const Backward& q, const T* d_heat, Workspace& workspace, const Device* device) {
  using A = Accumulator<T>;
  constexpr int64 kColumns = WeightBackwardShape<T, MAPS, false>::kColumns;
  const int64 columns = q.d_weight.data ? ceil_div(q.D(), kColumns) : 1;
  const Parts parts = Parts::of(ceil_div(q.rows(), kDepth<T>), columns * ceil_div(q.K(), MAPS));
  const int64 size = q.K() * q.D();
  A* const d_weight = q.d_weight.data ? workspace.take<A>(parts.count * size) : nullptr;
  double* const d_bias = q.d_bias.data ? workspace.take<double>(parts.count * q.K()) : nullptr;
  if (!device) return;
  const WeightBackward<T> arguments{
      d_heat,
      images_of<T>(q.pixels, q.D()),
      Divider::of(q.P()),
      affine_of<T>(q),
      d_weight,
      q.d_weight.stride[0],
      q.d_weight.stride[1],
      size % (16 / sizeof(A)) == 0 &&
          moves_wide(d_weight, sizeof(A), q.d_weight.stride[1], q.d_weight.stride[0], q.K(), 0, 1),
      d_bias,
      parts,
      static_cast<int>(q.rows()),
      static_cast<int>(q.K()),
      static_cast<int>(q.D())};
  launch_weight_bwd<T, MAPS>(arguments, q, *device);
  if (d_weight) launch_sum(d_weight, parts.count, q.d_weight, size, *device);
  if (d_bias) launch_sum(d_bias, parts.count, q.d_bias, q.K(), *device);
}

template <class T>
void backward(const Backward& q, Workspace& workspace, const Device* device) {
  expect_room(q);
  const bool pixels = q.project_features ? q.d_features.data : q.d_pixels.data;
  const bool parameters = q.d_weight.data || q.d_bias.data || q.d_scale.data || q.d_shift.data;
  const T* const d_heat = maps_backward<T>(q, pixels || parameters, workspace, device);
  pixels_backward<T>(q, d_heat, workspace, device);
  if (!q.d_weight.data && !q.d_bias.data) return;
  if constexpr (sizeof(T) < 8)
    if (q.K() > 64) return weight_backward<T, 128>(q, d_heat, workspace, device);
  weight_backward<T, 64>(q, d_heat, workspace, device);
}

}  // namespace lewel::cuda
