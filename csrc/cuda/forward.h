// The launches of the forward: grids and arguments of the kernels in forward_kernels.h.
#pragma once

#include "cuda/plan.h"

namespace lewel::cuda {

template <class T, int MAPS>
void launch_project(const Forward& q, const Device& device) {
  using A = Accumulator<T>;
  const Project<T> arguments{images_of<T>(q.pixels, q.D()),
                             Divider::of(q.P()),
                             weight_of<T>(q.weight),
                             static_cast<const T*>(q.bias.data),
                             q.bias.stride[0],
                             affine_of<T>(q),
                             static_cast<T*>(q.heat.data),
                             static_cast<A*>(q.norm.data),
                             static_cast<int>(q.rows()),
                             static_cast<int>(q.D()),
                             static_cast<int>(q.K())};
  with(in_planes(q.pixels), [&](auto planes) {
    with(q.scale.data, [&](auto e0) {
      constexpr bool kPlanes = decltype(planes)::value;
      using Shape = ProjectShape<T, MAPS, kPlanes>;
      const Grid grid{static_cast<int>(ceil_div(q.rows(), Shape::kRows)), 1, 1};
      launch<project_kernel<T, MAPS, kPlanes, decltype(e0)::value>>(
          device, grid, Shape::kThreads, Shape::bytes(stages_on<T>(device.arch), q.D()), arguments);
    });
  });
}

template <class T, int MAPS>
void launch_pool(const Forward& q, const Softmax<Accumulator<T>>& softmax, const Device& device) {
  const bool wide = q.pooled.number == kNumber<T> && q.width() % (16 / sizeof(T)) == 0;
  Pool<T> arguments{images_of<T>(q.features, q.width()),
                    heat_maps_of<T>(q),
                    softmax,
                    mixed(q.pooled),
                    wide,
                    static_cast<int>(q.C()),
                    static_cast<int>(q.width()),
                    static_cast<int>(q.L()),
                    0};
  with(in_planes(q.features), [&](auto planes) {
    using Shape = PoolShape<T, MAPS, decltype(planes)::value>;
    const int64 map_blocks = q.groups * ceil_div(q.L(), MAPS), chunks = ceil_div(q.width(), Shape::kChannels);
    arguments.chunks = static_cast<int>(pool_chunks(q.N() * map_blocks, chunks, softmax.top != nullptr));
    const Grid grid{static_cast<int>(q.N()), static_cast<int>(map_blocks),
                    static_cast<int>(ceil_div(chunks, arguments.chunks))};
    launch<pool_kernel<T, MAPS, decltype(planes)::value>>(device, grid, Shape::kThreads,
                                                          Shape::bytes(stages_on<T>(device.arch)), arguments);
  });
}

template <class T>
void forward(const Forward& q, Workspace& workspace, const Device* device) {
  expect_room(q);
  const bool tiled = q.P() > kPositions;
  const Softmax<Accumulator<T>> softmax =
      tiled || q.maps.data ? take_softmax<T>(q, workspace) : Softmax<Accumulator<T>>{};
  if (!device) return;
  if constexpr (sizeof(T) == 8)
    launch_project<T, 64>(q, *device);
  else if constexpr (sizeof(T) == 4)
    q.K() <= 64 ? launch_project<T, 64>(q, *device) : launch_project<T, 128>(q, *device);
  else
    q.K() <= 128 ? launch_project<T, 128>(q, *device) : launch_project<T, 256>(q, *device);
  if (softmax.top) launch_softmax<T>(q, softmax, *device);
  q.L() <= kFewMaps ? launch_pool<T, kFewMaps>(q, softmax, *device) : launch_pool<T, kManyMaps<T>>(q, softmax, *device);
  if (!q.maps.data) return;
  const Grid grid{static_cast<int>(q.N() * ceil_div(q.P(), MapsShape::kSide)),
                  static_cast<int>(ceil_div(q.K(), MapsShape::kSide)), 1};
  launch<maps_kernel<T>>(*device, grid, MapsShape::kThreads, MapsShape::bytes<Accumulator<T>>(), heat_maps_of<T>(q),
                         softmax, mixed(q.maps));
}

}  // namespace lewel::cuda
