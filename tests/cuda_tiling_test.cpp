// How csrc/cuda cuts sizes into tiles and moves, multiplies and writes them, one check per name: `program NAME` runs one,
// `program` lists them. tests/test_cuda_tiling.py compiles this for both kArch and runs it.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/backward.h"
#include "cuda/forward.h"

using namespace lewel::cuda;

namespace {

[[noreturn]] void failed(int line, const std::string& said) {
  std::printf("line %d: %s\n", line, said.c_str());
  std::exit(1);
}

#define CHECK(condition, said) \
  do {                         \
    if (!(condition)) failed(__LINE__, said); \
  } while (false)

std::string text(std::initializer_list<int64> numbers) {
  std::string said;
  for (const int64 x : numbers) said += (said.empty() ? "" : ", ") + std::to_string(x);
  return said;
}

constexpr int64 kLast = std::numeric_limits<int>::max();

std::mt19937_64 random_bits(1);

// From 0 to below 2^bits, of any magnitude.
int64 random_below(int bits) { return static_cast<int64>(random_bits() >> (64 - bits) >> random_bits() % bits); }

// Small, exact in every type, and without a pattern.
int number(int64 i, int64 j) { return static_cast<int>((i * 37 + j * 101 + i * j * 13) % 17 - 8); }

template <class T>
T stored(double x) {
  return rounded<T>(static_cast<Accumulator<T>>(x));
}
template <class T>
double value(T x) {
  return widen<Accumulator<T>>(x);
}

#if LEWEL_EMULATED == 80
template <class Use>
void for_each_type(Use use) {
  use(Half{}), use(BFloat16{}), use(float{}), use(double{});
}
#else  // rounding to bfloat16 is not to be had
template <class Use>
void for_each_type(Use use) {
  use(Half{}), use(float{}), use(double{});
}
#endif

// ---- sizes and offsets

void ceil_div_rounds_up() {
  for (int64 a = 0; a < 300; ++a)
    for (int64 b = 1; b < 70; ++b)
      CHECK(ceil_div(a, b) * b >= a && (ceil_div(a, b) - 1) * b < a, text({a, b}));
  CHECK(ceil_div(int64{1} << 40, 3) == ((int64{1} << 40) + 2) / 3, "it does not take 64 bits");
}

void divider_is_a_division() {
  std::vector<int64> divisors = {1, 2, 3, 5, 7, 49, 64, 65, 196, 784, 65535, 65536, 65537, kLast / 2, kLast - 1, kLast};
  for (int log = 0; log < 31; ++log) divisors.push_back(int64{1} << log);
  for (int i = 0; i < 3000; ++i) divisors.push_back(random_below(31) + 1);
  for (const int64 d : divisors) {
    if (d > kLast) continue;
    const Divider divider = Divider::of(d);
    CHECK(divider.divisor == d, text({d}));
    const auto check = [&](int64 x) {
      if (x >= 0 && x <= kLast) CHECK(divider.quotient(static_cast<int>(x)) == x / d, text({x, d}));
    };
    for (int64 e = -2; e <= 2; ++e) {
      check(kLast + e);
      for (int64 m = 0; m < 40; ++m) check(m * d + e), check((kLast / d - m) * d + e), check(random_below(31) / d * d + e);
    }
    for (int i = 0; i < 40; ++i) check(random_below(31));
  }
}

void rows_are_images_and_positions() {
  for (int i = 0; i < 20000; ++i) {
    const int64 positions = random_below(31) + 1, images = kLast / positions;
    if (images == 0) continue;
    const int64 n = random_below(31) % images, p = random_below(31) % positions, row = n * positions + p;
    const int64 image_stride = random_below(31), position_stride = random_below(31);
    const Rows rows{Divider::of(positions), image_stride, position_stride};
    CHECK(rows(static_cast<int>(row)) == n * image_stride + p * position_stride,
          text({n, p, positions, image_stride, position_stride}));
  }
  const Rows rows{Divider::of(49), int64{3} << 31, int64{1} << 31};
  CHECK(rows(0) == 0 && rows(48) == int64{48} << 31 && rows(49) == int64{3} << 31 && rows(98) == int64{6} << 31,
        "the edges of images");
}

void strided_takes_64_bits() {
  for (const int64 stride : {int64{0}, int64{1}, int64{49}, int64{1} << 31, (int64{1} << 32) + 7})
    for (const int64 i : {int64{0}, int64{1}, int64{3}, kLast})
      CHECK(Strided{stride}(static_cast<int>(i)) == i * stride, text({i, stride}));
}

void stages_and_depth() {
  CHECK(stages_on(70) == 2 && stages_on(75) == 2 && stages_on(80) == 3 && stages_on(90) == 3, "stages");
  CHECK(kDepth<Half> == 32 && kDepth<BFloat16> == 32 && kDepth<float> == 16 && kDepth<double> == 8,
        "a step is not 64 bytes deep");
}

void parts_cover_all_steps() {
  std::vector<int64> sizes;
  for (int64 i = 1; i < 150; ++i) sizes.push_back(i);
  for (int i = 0; i < 200; ++i) sizes.push_back(random_below(28) + 1);
  for (const int64 steps : sizes)
    for (const int64 blocks : sizes) {
      const Parts parts = Parts::of(steps, blocks);
      const std::string said = text({steps, blocks, parts.each, parts.count});
      CHECK(parts.each * parts.count >= steps, "steps are left out: " + said);
      CHECK(parts.each * (parts.count - 1) < steps, "a part is empty: " + said);
      CHECK(parts.each >= 8, "a part is not worth its sum: " + said);
      CHECK(parts.count == 1 || parts.count * blocks <= 132, "more blocks than multiprocessors: " + said);
      CHECK(parts.each == 8 || ceil_div(steps, parts.each - 1) * blocks > 132, "fewer blocks than could be: " + said);
    }
}

void pool_chunks_keep_a_gpu_busy() {
  for (int i = 0; i < 200000; ++i) {
    const int64 blocks = random_below(20) + 1, chunks = random_below(12) + 1, each = pool_chunks(blocks, chunks, false);
    const std::string said = text({blocks, chunks, each});
    CHECK(each >= 1 && each <= chunks && each <= 8, "out of bounds: " + said);
    CHECK(each == 1 || blocks * ceil_div(chunks, each) >= 4 * 132, "too few blocks: " + said);
    CHECK(each == std::min<int64>(8, chunks) || blocks * chunks < 4 * 132 * (each + 1), "too many blocks: " + said);
    CHECK(pool_chunks(blocks, chunks, true) == 1, "maps are weighed anew for each chunk, and wait for it: " + said);
  }
}

alignas(16) char aligned_bytes[32];

void moves_wide_needs_vectors() {
  const auto wide = [](int byte, int size, int64 fast, int64 slow, int64 slows, int64 outer, int64 outers) {
    return moves_wide(aligned_bytes + byte, size, fast, slow, slows, outer, outers);
  };
  CHECK(wide(0, 2, 1, 24, 5, 48, 3), "nothing is in the way");
  for (const int byte : {2, 4, 8, 15}) CHECK(!wide(byte, 2, 1, 24, 5, 48, 3), "the first is not aligned");
  CHECK(wide(16, 2, 1, 24, 5, 48, 3), "16 bytes on");
  for (const int64 fast : {0, 2, 8, 16}) CHECK(!wide(0, 2, fast, 24, 5, 48, 3), "numbers do not lie together");
  CHECK(!wide(0, 2, 1, 20, 5, 48, 3), "the second row is not aligned");
  CHECK(wide(0, 2, 1, 20, 1, 48, 3), "there is no second row");
  CHECK(!wide(0, 2, 1, 24, 5, 44, 3), "the second image is not aligned");
  CHECK(wide(0, 2, 1, 24, 5, 44, 1), "there is no second image");
  CHECK(wide(0, 2, 1, 0, 5, 0, 3), "all rows are the same");
  for (const int size : {2, 4, 8}) {
    CHECK(wide(0, size, 1, 16 / size, 5, 16 / size, 3), "a vector is a row");
    CHECK(!wide(0, size, 1, 8 / size, 5, 16, 3) && !wide(0, size, 1, 16, 5, 8 / size, 3), "half a vector is");
  }
}

View view(std::initializer_list<int64> sizes, std::initializer_list<int64> strides, Number type = Number::f16) {
  View x;
  x.data = aligned_bytes;
  x.number = type;
  std::copy(sizes.begin(), sizes.end(), x.size);
  std::copy(strides.begin(), strides.end(), x.stride);
  return x;
}

void images_and_weights_are_wide() {
  const View planes = view({2, 16, 24}, {16 * 24, 24, 1}), rows = view({2, 16, 7}, {16 * 7, 1, 16});
  CHECK(in_planes(planes) && !in_planes(rows), "which axis is the fast one");
  CHECK(!in_planes(view({2, 16, 1}, {16, 16, 1})) && !in_planes(view({2, 16, 7}, {0, 0, 0})), "no positions apart");
  CHECK(images_of<Half>(planes, 3).wide, "planes are moved along positions, whatever the channels");
  CHECK(!images_of<Half>(view({2, 16, 20}, {16 * 24, 24, 1}), 16).wide, "a vector would leave the plane");
  CHECK(images_of<Half>(rows, 16).wide && images_of<Half>(rows, 8).wide, "rows of whole groups");
  CHECK(!images_of<Half>(rows, 4).wide, "a vector would leave the group");
  CHECK(images_of<float>(view({2, 16, 7}, {16 * 7, 1, 16}, Number::f32), 4).wide, "four float32 are a vector");
  CHECK(!images_of<Half>(view({2, 16, 7}, {16 * 7 + 4, 1, 16}), 16).wide, "the second image is not aligned");
  CHECK(!images_of<Half>(view({2, 16, 7}, {20 * 7, 1, 20}), 16).wide, "the second position is not aligned");
  const Images<Half> x = images_of<Half>(view({2, 16, 7}, {500, 3, 60}), 16);
  CHECK(x.image == 500 && x.channel == 3 && x.position == 60 && !x.wide, "strides");

  CHECK(weight_of<Half>(view({5, 16}, {16, 1})).wide && weight_of<Half>(view({5, 13}, {16, 1})).wide, "padded rows");
  CHECK(weight_of<Half>(view({1, 13}, {13, 1})).wide, "there is no second row");
  CHECK(!weight_of<Half>(view({5, 13}, {13, 1})).wide && !weight_of<Half>(view({5, 16}, {1, 5})).wide, "odd, transposed");
}

void workspace_pieces_lie_apart() {
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t seed = random_bits();
    char* const base = reinterpret_cast<char*>(std::uintptr_t{1} << 40);
    const auto take = [&](Workspace& workspace) {
      std::mt19937_64 bits(seed);
      int64 end = 0;
      for (int i = 0; i < 12; ++i) {
        const int64 count = static_cast<int64>(bits() >> 31 >> bits() % 33);
        char* at = nullptr;
        int64 bytes = count;
        switch (bits() % 3) {
          case 0: at = reinterpret_cast<char*>(workspace.take<double>(count)), bytes *= 8; break;
          case 1: at = reinterpret_cast<char*>(workspace.take<Half>(count)), bytes *= 2; break;
          default: at = reinterpret_cast<char*>(workspace.take<float>(count)), bytes *= 4;
        }
        if (round % 2) continue;  // only counted
        const int64 offset = at - base;
        CHECK(offset % 256 == 0, "not aligned: " + text({offset}));
        CHECK(offset >= end, "two pieces overlap: " + text({offset, end}));
        end = offset + bytes;
        CHECK(end <= workspace.bytes(), "fewer bytes are counted than handed out: " + text({end, workspace.bytes()}));
      }
      return workspace.bytes();
    };
    Workspace counted, handed(base);
    const int64 bytes = (round % 2 ? take(counted) : take(handed));
    Workspace again(round % 2 ? base : nullptr);
    if (round % 2) CHECK(take(again) == bytes, "another number of bytes is counted than handed out");
  }
}

// ---- shapes

template <class Shape>
struct Visited {
  using type = Shape;
};

// Calls use(Visited<shape>, bytes of shared memory by stages, name) for every shape that a launch may take.
template <class Use>
void for_each_shape(Use use) {
  using Bytes = std::function<int(int)>;
  const auto of_maps = [&](auto type, auto maps) {
    using T = decltype(type);
    constexpr int kMaps = decltype(maps)::value;
    const auto of_planes = [&](auto planes) {
      constexpr bool kPlanes = decltype(planes)::value;
      using Forwards = PoolShape<T, kMaps, kPlanes>;
      using Backwards = PoolBackwardShape<T, kMaps, kPlanes>;
      use(Visited<Forwards>{}, Bytes([](int s) { return Forwards::bytes(s); }), "pool");
      use(Visited<Backwards>{}, Bytes([](int s) { return Backwards::bytes(s); }), "pool_bwd");
    };
    of_planes(bool_constant<false>{}), of_planes(bool_constant<true>{});
  };
  const auto of_products = [&](auto type, auto project_maps, auto weight_maps) {
    using T = decltype(type);
    const auto of_planes = [&](auto planes) {
      constexpr bool kPlanes = decltype(planes)::value;
      using Projects = ProjectShape<T, decltype(project_maps)::value, kPlanes>;
      using Weights = WeightBackwardShape<T, decltype(weight_maps)::value, kPlanes>;
      use(Visited<Projects>{}, Bytes([](int s) { return Projects::bytes(s, 2048); }), "project");
      use(Visited<Weights>{}, Bytes([](int s) { return Weights::bytes(s); }), "weight_bwd");
    };
    of_planes(bool_constant<false>{}), of_planes(bool_constant<true>{});
  };
  const auto of_type = [&](auto type) {
    using T = decltype(type);
    use(Visited<PixelsBackwardShape<T>>{}, Bytes([](int s) { return PixelsBackwardShape<T>::bytes(s, true); }),
        "pixels_bwd");
    of_maps(type, std::integral_constant<int, kFewMaps>{});
    if constexpr (kManyMaps<T> != kFewMaps) of_maps(type, std::integral_constant<int, kManyMaps<T>>{});
    if constexpr (sizeof(T) == 8) {
      of_products(type, std::integral_constant<int, 64>{}, std::integral_constant<int, 64>{});
    } else {
      constexpr int kFew = sizeof(T) == 4 ? 64 : 128;
      of_products(type, std::integral_constant<int, kFew>{}, std::integral_constant<int, 64>{});
      of_products(type, std::integral_constant<int, 2 * kFew>{}, std::integral_constant<int, 128>{});
    }
  };
  of_type(Half{}), of_type(BFloat16{}), of_type(float{}), of_type(double{});
}

void shared_memory_fits() {
  int shapes = 0;
  for_each_shape([&](auto, const std::function<int(int)>& bytes, const std::string& name) {
    ++shapes;
    CHECK(bytes(2) <= 96 * 1024, name + " takes more than an sm_70 has: " + text({shapes, bytes(2)}));
    CHECK(bytes(3) <= 163 * 1024, name + " takes more than an sm_80 has: " + text({shapes, bytes(3)}));
    CHECK(bytes(2) < bytes(3) || name == "pixels_bwd" || name == "weight_bwd", name + " has no third stage");
  });
  CHECK(shapes == 4 + 14 * 2 + 14 * 2, "shapes: " + text({shapes}));
  CHECK(SoftmaxShape::bytes<double>() <= 48 * 1024 && MapsShape::bytes<double>() <= 48 * 1024, "softmax, maps");
}

template <class Shape>
void check_aside(int64 depth) {
  using Sums = typename Shape::Sums;
  for (int64 D = 1; D < 1000; ++D) {
    const int64 beside = Shape::bytes(2, D) - Shape::front(2) - Shape::kSquares * int64{4};
    const bool sets_aside = ceil_div(D, depth) >= Sums::kStepsAtOnce;  // as `recall` asks
    CHECK(!sets_aside || beside >= Sums::kAside * int64{4}, "no memory to set sums aside at D = " + std::to_string(D));
  }
}

void shared_memory_of_sums_set_aside() {
  check_aside<ProjectShape<float, 64, false>>(kDepth<float>);
  check_aside<ProjectShape<float, 128, true>>(kDepth<float>);
}

// SLOW, FAST and THREADS of a tile.
template <class X>
struct TileOf;
template <class T, int SLOW, int FAST, int THREADS>
struct TileOf<Tile<T, SLOW, FAST, THREADS>> {
  using type = T;
  static constexpr int kSlow = SLOW, kFast = FAST, kThreads = THREADS;
};

// Calls use(Visited<tile>) for the tiles of all shapes.
template <class Use>
void for_each_tile(Use use) {
  for_each_shape([&](auto visited, const auto&, const std::string&) {
    using Shape = typename decltype(visited)::type;
    const auto tiles = [&](auto* has_pixels, auto* has_features, auto* has_heat) {
      (void)has_pixels, (void)has_features, (void)has_heat;
    };
    (void)tiles;
    if constexpr (requires_pixel_tile<Shape>(0)) use(Visited<typename Shape::PixelTile>{});
    if constexpr (requires_weight_tile<Shape>(0)) use(Visited<typename Shape::WeightTile>{});
    if constexpr (requires_heat_tile<Shape>(0)) use(Visited<typename Shape::HeatTile>{});
    if constexpr (requires_feature_tile<Shape>(0)) use(Visited<typename Shape::FeatureTile>{});
    if constexpr (requires_grad_tile<Shape>(0)) use(Visited<typename Shape::GradTile>{});
  });
}

}  // namespace
