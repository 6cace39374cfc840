// The tensors that kernels read in place, and the matrices that they see in them.
#pragma once

#include "cuda/tile.h"

namespace lewel::cuda {

// Images (N, channels, P), read in place.
template <class T>
struct Images {
  const T* data;
  int64 image, channel, position;  // strides
  bool wide;                       // 16 bytes may be loaded at a time, along channels or, in planes, along positions
};

// A matrix of parameters (K, D), read in place.
template <class T>
struct Weight {
  const T* data;
  int64 row, column;  // strides
  bool wide;          // 16 bytes may be loaded at a time along a row
};

// scale and shift of E0, each (D,), null without it.
template <class A>
struct Affine {
  const A* scale;
  const A* shift;
};

// E0 of one number of a tile of pixels; CHANNEL_SLOW where the slow axis of the tile is that of the channels.
template <class T, bool CHANNEL_SLOW>
struct Activate {
  static constexpr bool kChanges = true;
  using A = Accumulator<T>;
  Affine<A> affine;

  LEWEL_DEVICE T operator()(T x, int slow, int fast) const {
    const int d = CHANNEL_SLOW ? slow : fast;
    const A y = widen<A>(x) * affine.scale[d] + affine.shift[d];
    return rounded<T>(y <= 0 ? A{0} : y);  // NaN passes, as in torch.relu
  }
};
template <class T, bool CHANNEL_SLOW>
LEWEL_DEVICE auto change_of(const Affine<Accumulator<T>>& affine, bool_constant<true>) {
  return Activate<T, CHANNEL_SLOW>{affine};
}
template <class T, bool CHANNEL_SLOW>
LEWEL_DEVICE auto change_of(const Affine<Accumulator<T>>&, bool_constant<false>) {
  return Unchanged{};
}

// All positions of a batch as rows: the matrix (R, D), or (D, R) where neighbouring positions lie together.
template <bool PLANES, class T>
LEWEL_DEVICE auto rows_of(const Images<T>& x, const Divider& positions, int R, int D) {
  const Rows rows{positions, x.image, x.position};
  const Strided channels{x.channel};
  if constexpr (PLANES)
    return Source{Exact<T>{x.data}, channels, rows, D, R, x.wide};
  else
    return Source{Exact<T>{x.data}, rows, channels, R, D, x.wide};
}

// Some channels of one image: (P, width), or (width, P).
template <bool PLANES, class T>
LEWEL_DEVICE auto group_of(const Images<T>& x, int image, int64 channel, int P, int width) {
  const Exact<T> numbers{x.data + image * x.image + channel * x.channel};
  const Strided channels{x.channel}, positions{x.position};
  if constexpr (PLANES)
    return Source{numbers, channels, positions, width, P, x.wide};
  else
    return Source{numbers, positions, channels, P, width, x.wide};
}

}  // namespace lewel::cuda
