// The types of numbers in memory: storage types, and the accumulators that they are computed with.
#pragma once

namespace lewel::cuda {

using int64 = long long;
using uint32 = unsigned int;

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

enum class Number : int { f32, f64, f16, bf16 };

template <class T>
constexpr Number kNumber = Number::f32;
template <>
constexpr Number kNumber<double> = Number::f64;
template <>
constexpr Number kNumber<Half> = Number::f16;
template <>
constexpr Number kNumber<BFloat16> = Number::bf16;

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace lewel::cuda
