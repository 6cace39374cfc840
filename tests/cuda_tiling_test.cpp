// How csrc/cuda cuts sizes into tiles, and moves, multiplies and writes tiles, one check per name: `program NAME` runs
// one, `program` lists them. tests/test_cuda_tiling.py compiles this for both kArch and runs it.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda_checks.h"

using namespace lewel::cuda;

namespace {

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

// Calls use(a number) for the storage types that the emulated GPU can round to.
template <class Use>
void for_each_type(Use use) {
  use(Half{}), use(float{}), use(double{});
  if constexpr (kArch >= 80) use(BFloat16{});
}

// ---- sizes and offsets

CHECKED(ceil_div_rounds_up) {
  for (int64 a = 0; a < 300; ++a)
    for (int64 b = 1; b < 70; ++b) CHECK(ceil_div(a, b) * b >= a && (ceil_div(a, b) - 1) * b < a, text({a, b}));
  CHECK(ceil_div(int64{1} << 40, 3) == ((int64{1} << 40) + 2) / 3, "it does not take 64 bits");
}

CHECKED(divider_is_a_division) {
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
  }
}

CHECKED(rows_are_images_and_positions) {
  for (int i = 0; i < 20000; ++i) {
    const int64 positions = random_below(31) + 1, images = kLast / positions;
    if (images == 0) continue;
    const int64 n = random_below(31) % images, p = random_below(31) % positions;
    const int64 image_stride = random_below(31), position_stride = random_below(31);
    const Rows rows{Divider::of(positions), image_stride, position_stride};
    const int row = static_cast<int>(n * positions + p);
    const std::string said = text({n, p, positions, image_stride, position_stride});
    CHECK(rows(row) == n * image_stride + p * position_stride, said);
    CHECK(rows.together(row) == n * image_stride + p, said);
  }
  const Rows rows{Divider::of(49), int64{3} << 31, int64{1} << 31};
  CHECK(rows(0) == 0 && rows(48) == int64{48} << 31 && rows(49) == int64{3} << 31 && rows(98) == int64{6} << 31,
        "the edges of images");
}

CHECKED(strided_takes_64_bits) {
  for (const int64 stride : {int64{0}, int64{1}, int64{49}, int64{1} << 31, (int64{1} << 32) + 7})
    for (const int64 i : {int64{0}, int64{1}, int64{3}, kLast})
      CHECK(Strided{stride}(static_cast<int>(i)) == i * stride && Strided{1}.together(static_cast<int>(i)) == i,
            text({i, stride}));
}

CHECKED(stages_and_depth) {
  for (const int arch : {70, 75}) CHECK(stages_on<Half>(arch) == 2 && stages_on<double>(arch) == 2, text({arch}));
  for (const int arch : {80, 90}) {
    CHECK(stages_on<Half>(arch) == 3 && stages_on<BFloat16>(arch) == 3 && stages_on<float>(arch) == 3, text({arch}));
    CHECK(stages_on<double>(arch) == 2, "an sm_86 has no memory for three stages of float64");
  }
  CHECK(kDepth<Half> == 32 && kDepth<BFloat16> == 32 && kDepth<float> == 16 && kDepth<double> == 8,
        "a step is not 64 bytes deep");
}

CHECKED(parts_cover_all_steps) {
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
      CHECK(parts.count == 1 || parts.count * blocks <= 2 * 132, "more blocks than a GPU holds: " + said);
      CHECK(parts.each == 8 || ceil_div(steps, parts.each - 1) * blocks > 2 * 132, "fewer than could be: " + said);
    }
}

CHECKED(pool_chunks_keep_a_gpu_busy) {
  for (int i = 0; i < 200000; ++i) {
    const int64 blocks = random_below(20) + 1, chunks = random_below(12) + 1, each = pool_chunks(blocks, chunks, false);
    const std::string said = text({blocks, chunks, each});
    CHECK(each >= 1 && each <= chunks && each <= 8, "out of bounds: " + said);
    CHECK(each == 1 || blocks * ceil_div(chunks, each) >= 4 * 132, "too few blocks: " + said);
    CHECK(each == std::min<int64>(8, chunks) || blocks * chunks < 4 * 132 * (each + 1), "too many blocks: " + said);
    CHECK(pool_chunks(blocks, chunks, true) == 1, "weighed anew for each chunk, and not spread: " + said);
  }
}

alignas(16) char aligned_bytes[32];

CHECKED(moves_wide_needs_vectors) {
  const auto wide = [](int byte, int size, int64 fast, int64 slow, int64 slows, int64 outer, int64 outers) {
    return moves_wide(aligned_bytes + byte, size, fast, slow, slows, outer, outers);
  };
  CHECK(wide(0, 2, 1, 24, 5, 48, 3), "nothing is in the way");
  for (const int byte : {2, 4, 8, 15}) CHECK(!wide(byte, 2, 1, 24, 5, 48, 3), "the first number is not aligned");
  CHECK(wide(16, 2, 1, 24, 5, 48, 3), "16 bytes on");
  for (const int64 fast : {0, 2, 8, 16}) CHECK(!wide(0, 2, fast, 24, 5, 48, 3), "the numbers do not lie together");
  CHECK(!wide(0, 2, 1, 20, 5, 48, 3), "the second row is not aligned");
  CHECK(wide(0, 2, 1, 20, 1, 48, 3), "there is no second row");
  CHECK(!wide(0, 2, 1, 24, 5, 44, 3), "the second image is not aligned");
  CHECK(wide(0, 2, 1, 24, 5, 44, 1), "there is no second image");
  CHECK(wide(0, 2, 1, 0, 5, 0, 3), "all rows are the same");
  for (const int size : {2, 4, 8}) {
    CHECK(wide(0, size, 1, 16 / size, 5, 16 / size, 3), "a row is a vector");
    CHECK(!wide(0, size, 1, 8 / size, 5, 16, 3) && !wide(0, size, 1, 16, 5, 8 / size, 3), "or half of one");
  }
}

View view(void* data, Number type, std::initializer_list<int64> sizes, std::initializer_list<int64> strides) {
  View x;
  x.data = data;
  x.number = type;
  std::copy(sizes.begin(), sizes.end(), x.size);
  std::copy(strides.begin(), strides.end(), x.stride);
  return x;
}

CHECKED(images_and_weights_are_wide) {
  const auto halves = [](std::initializer_list<int64> sizes, std::initializer_list<int64> strides) {
    return view(aligned_bytes, Number::f16, sizes, strides);
  };
  const View planes = halves({2, 16, 24}, {16 * 24, 24, 1}), rows = halves({2, 16, 7}, {16 * 7, 1, 16});
  CHECK(in_planes(planes) && !in_planes(rows), "which axis is the fast one");
  CHECK(!in_planes(halves({2, 16, 1}, {16, 16, 1})) && !in_planes(halves({2, 16, 7}, {0, 0, 0})), "one position");
  CHECK(images_of<Half>(planes, 3).wide, "planes are moved along positions, whatever the channels");
  CHECK(!images_of<Half>(halves({2, 16, 20}, {16 * 24, 24, 1}), 16).wide, "a vector would leave the plane");
  CHECK(images_of<Half>(rows, 16).wide && images_of<Half>(rows, 8).wide, "rows of whole groups");
  CHECK(!images_of<Half>(rows, 4).wide, "a vector would leave the group");
  CHECK(images_of<float>(view(aligned_bytes, Number::f32, {2, 16, 7}, {16 * 7, 1, 16}), 4).wide, "four float32");
  CHECK(!images_of<Half>(halves({2, 16, 7}, {16 * 7 + 4, 1, 16}), 16).wide, "the second image is not aligned");
  CHECK(!images_of<Half>(halves({2, 16, 7}, {20 * 7, 1, 20}), 16).wide, "the second position is not aligned");
  const Images<Half> x = images_of<Half>(halves({2, 16, 7}, {500, 3, 60}), 16);
  CHECK(x.image == 500 && x.channel == 3 && x.position == 60 && !x.wide, "strides");
  CHECK(weight_of<Half>(halves({5, 16}, {16, 1})).wide && weight_of<Half>(halves({5, 13}, {16, 1})).wide, "padded rows");
  CHECK(weight_of<Half>(halves({1, 13}, {13, 1})).wide, "there is no second row");
  CHECK(!weight_of<Half>(halves({5, 13}, {13, 1})).wide, "the second row is not aligned");
  CHECK(!weight_of<Half>(halves({5, 16}, {1, 5})).wide, "transposed");
}

CHECKED(workspace_pieces_lie_apart) {
  for (int round = 0; round < 200; ++round) {
    char* const base = reinterpret_cast<char*>(std::uintptr_t{1} << 40);
    Workspace counted, workspace(base);
    char* end = base;
    for (int i = 0; i < 12; ++i) {
      const int64 count = random_below(33);
      const auto take = [&](auto type) {
        using T = decltype(type);
        counted.take<T>(count);
        char* const at = reinterpret_cast<char*>(workspace.take<T>(count));
        CHECK((at - base) % 256 == 0, "not aligned: " + text({at - base}));
        CHECK(at >= end, "two pieces overlap: " + text({at - base, end - base}));
        end = at + count * static_cast<int64>(sizeof(T));
      };
      random_bits() % 2 ? take(double{}) : take(Half{});
      CHECK(end - base <= workspace.bytes(), "more is handed out than counted: " + text({end - base}));
      CHECK(counted.bytes() == workspace.bytes(), "another number is counted than handed out");
    }
  }
}

// ---- shapes

template <class X>
struct TileOf;
template <class T, int SLOW, int FAST, int THREADS>
struct TileOf<Tile<T, SLOW, FAST, THREADS>> {
  using type = T;
  static constexpr int kSlow = SLOW, kFast = FAST, kThreads = THREADS;
};

template <class... Tiles>
struct Moved {};

template <class... Tiles>
constexpr bool are_double(Moved<Tiles...>) {
  return (std::is_same_v<typename TileOf<Tiles>::type, double> || ...);
}

// Calls use(Moved<tiles>, bytes of shared memory on an arch, name) for every shape that a launch may take.
template <class Use>
void for_each_shape(Use use) {
  using Bytes = std::function<int(int)>;
  const auto of_maps = [&](auto type, auto maps) {
    using T = decltype(type);
    const auto of_planes = [&](auto planes) {
      using Pools = PoolShape<T, decltype(maps)::value, decltype(planes)::value>;
      using Backwards = PoolBackwardShape<T, decltype(maps)::value, decltype(planes)::value>;
      use(Moved<typename Pools::FeatureTile>{}, Bytes([](int arch) { return Pools::bytes(stages_on<T>(arch)); }), "pool");
      use(Moved<typename Backwards::FeatureTile, typename Backwards::GradTile>{},
          Bytes([](int arch) { return Backwards::bytes(stages_on<T>(arch)); }), "pool_bwd");
    };
    of_planes(bool_constant<false>{}), of_planes(bool_constant<true>{});
  };
  const auto of_products = [&](auto type, auto project_maps, auto weight_maps) {
    using T = decltype(type);
    const auto of_planes = [&](auto planes) {
      using Projects = ProjectShape<T, decltype(project_maps)::value, decltype(planes)::value>;
      using Weights = WeightBackwardShape<T, decltype(weight_maps)::value, decltype(planes)::value>;
      use(Moved<typename Projects::PixelTile, typename Projects::WeightTile>{},
          Bytes([](int arch) { return Projects::bytes(stages_on<T>(arch), 2048); }), "project");
      use(Moved<typename Weights::HeatTile, typename Weights::PixelTile>{},
          Bytes([](int arch) { return Weights::bytes(stages_on<T>(arch)); }), "weight_bwd");
    };
    of_planes(bool_constant<false>{}), of_planes(bool_constant<true>{});
  };
  const auto of_type = [&](auto type) {
    using T = decltype(type);
    using Pixels = PixelsBackwardShape<T>;
    use(Moved<typename Pixels::HeatTile, typename Pixels::WeightTile>{},
        Bytes([](int arch) { return Pixels::bytes(stages_on<T>(arch), true); }), "pixels_bwd");
    of_maps(type, std::integral_constant<int, kFewMaps>{});
    if constexpr (kManyMaps<T> != kFewMaps) of_maps(type, std::integral_constant<int, kManyMaps<T>>{});
    constexpr int kLeast = sizeof(T) == 2 ? 128 : 64;
    of_products(type, std::integral_constant<int, kLeast>{}, std::integral_constant<int, 64>{});
    if constexpr (sizeof(T) < 8)
      of_products(type, std::integral_constant<int, 2 * kLeast>{}, std::integral_constant<int, 128>{});
  };
  of_type(Half{}), of_type(BFloat16{}), of_type(float{}), of_type(double{});
}

CHECKED(shared_memory_fits) {
  int shapes = 0;
  for_each_shape([&](auto tiles, const std::function<int(int)>& bytes, const std::string& name) {
    const std::string said = name + ", bytes on sm_70 and sm_80: " + text({bytes(70), bytes(80)});
    ++shapes;
    CHECK(bytes(70) <= 96 * 1024, "more than an sm_70 has: " + said);
    CHECK(bytes(80) <= 99 * 1024, "more than an sm_86 has, which runs the code of an sm_80: " + said);
    if (!are_double(tiles)) CHECK(bytes(70) <= 64 * 1024, "more than an sm_75 has, which is refused float64 alone: " + said);
  });
  CHECK(shapes == 3 * 17 + 9, "shapes were left out: " + text({shapes}));
  CHECK(SoftmaxShape::bytes<double>() <= 48 * 1024 && MapsShape::bytes<double>() <= 48 * 1024, "softmax, maps");
}

template <class Shape>
void check_aside() {
  for (int64 D = 1; D < 1000; ++D) {
    const bool sets_aside = ceil_div(D, kDepth<float>) >= Shape::Sums::kStepsAtOnce;  // as `recall` asks
    const int64 beside = Shape::bytes(2, D) - Shape::front(2) - Shape::kSquares * int64{4};
    CHECK(!sets_aside || beside >= Shape::Sums::kAside * int64{4}, "no memory at D = " + std::to_string(D));
  }
}

CHECKED(sums_set_aside_have_memory) {
  check_aside<ProjectShape<float, 64, false>>();
  check_aside<ProjectShape<float, 128, true>>();
}

// Calls use(a tile) for those of all shapes.
template <class Use, class... Tiles>
void for_each_of(Moved<Tiles...>, Use use) {
  (use(Tiles{}), ...);
}
template <class Use>
void for_each_tile(Use use) {
  for_each_shape([&](auto tiles, const auto&, const auto&) { for_each_of(tiles, use); });
}

// That eight rows, of which ldmatrix takes 16 bytes each, start in eight different groups of banks.
template <class T>
void check_pitch(int pitch, const char* what) {
  unsigned groups = 0;
  CHECK(pitch * sizeof(T) % 16 == 0, std::string(what) + " has rows that are not aligned to 16 bytes");
  for (int row = 0; row < 8; ++row) groups |= 1u << row * pitch * sizeof(T) / 16 % 8;
  CHECK(groups == 0xff, std::string(what) + " has rows that meet in a bank: " + text({pitch, sizeof(T)}));
}

CHECKED(pitches_avoid_conflicts) {
  for_each_tile([](auto tile) {
    using Of = TileOf<decltype(tile)>;
    check_pitch<typename Of::type>(decltype(tile)::kPitch, "a tile");
    CHECK(decltype(tile)::kPitch >= Of::kFast && decltype(tile)::kNumbers == Of::kSlow * decltype(tile)::kPitch, "size");
  });
  check_pitch<Half>(GroupMaps<Half, 32>::kPitch, "the weights of a group");
  check_pitch<Half>(GroupMaps<Half, 64>::kPitch, "the weights of a group");
  check_pitch<BFloat16>(GroupMaps<BFloat16, 64>::kPitch, "the weights of a group");
  check_pitch<float>(GroupMaps<float, 64>::kPitch, "the weights of a group");
  check_pitch<double>(GroupMaps<double, 32>::kPitch, "the weights of a group");
}

// ---- tiles on their way

void run_block(int threads, int shared_bytes, const std::function<void()>& kernel) {
  emulation::run({1, 1, 1}, threads, shared_bytes, kernel);
}

// Offsets along an axis, with a note of each index that is asked for.
struct Noted {
  int64 stride;
  int* asked;

  int64 operator()(int i) const {
    ++asked[i];
    return i * stride;
  }
  int64 together(int i) const { return (*this)(i); }
};

// Numbers, with a note of each that is read alone.
template <class T>
struct Read {
  const T* data;
  int* times;

  T at(int64 offset) const {
    ++times[offset];
    return data[offset];
  }
  const void* address(int64 offset) const { return data + offset; }
};

template <class T>
struct Plus100 {
  static constexpr bool kChanges = true;
  int* asked;  // (slows, fasts)
  int fasts;

  T operator()(T x, int slow, int fast) const {
    ++asked[slow * fasts + fast];
    return stored<T>(value(x) + 100);
  }
};

// A tile of a source of `slows` x `fasts` numbers, from (slow, fast) on. Rows of the source are whole vectors apart, and
// between them lies NaN.
template <class X, bool CHANGES>
void check_tile(bool wide, int slows, int fasts, int slow, int fast) {
  using Of = TileOf<X>;
  using T = typename Of::type;
  constexpr int kVector = 16 / sizeof(T), kSlow = Of::kSlow, kFast = Of::kFast;
  const int pitch = (fasts + kVector - 1) / kVector * kVector;
  std::vector<Vector> memory(static_cast<size_t>(slows) * pitch / kVector);
  T* const data = reinterpret_cast<T*>(memory.data());
  std::memset(data, 0xff, memory.size() * sizeof(Vector));
  for (int i = 0; i < slows; ++i)
    for (int f = 0; f < fasts; ++f) data[i * pitch + f] = stored<T>(number(i, f));
  std::vector<int> asked_slow(slows), asked_fast(fasts), changed(slows * fasts), read(slows * pitch);
  std::vector<T> found(X::kNumbers);
  const Source source{Read<T>{data, read.data()}, Noted{pitch, asked_slow.data()}, Noted{1, asked_fast.data()}, slows, fasts, wide};
  run_block(Of::kThreads, X::kNumbers * sizeof(T), [&] {
    T* const shared = reinterpret_cast<T*>(shared_memory());
    X tile;
    if constexpr (CHANGES) {
      const Plus100<T> change{changed.data(), fasts};
      tile.begin(source, shared, slow, fast, change);
      tile.end(source, shared, slow, fast, change);
    } else {
      tile.begin(source, shared, slow, fast);
      tile.end(source, shared, slow, fast);
    }
    if constexpr (kArch >= 80) {
      copy_async_commit();
      copy_async_wait<0>();
    }
    block_barrier();
    if (thread() == 0) std::memcpy(found.data(), shared, X::kNumbers * sizeof(T));
  });
  const auto said = [&](int i, int f) {
    return text({static_cast<int64>(sizeof(T)), kSlow, kFast, wide, CHANGES, slows, fasts, slow, fast, i, f});
  };
  for (int i = 0; i < kSlow; ++i)
    for (int f = 0; f < X::kPitch; ++f) {
      const T x = found[i * X::kPitch + f];
      if (f >= kFast) {
        CHECK(std::isnan(value(x)), "written between two rows: " + said(i, f));
      } else if (slow + i >= slows || fast + f >= fasts) {
        CHECK(value(x) == 0, "not zero beyond the edge: " + said(i, f));
      } else {
        CHECK(value(x) == number(slow + i, fast + f) + (CHANGES ? 100 : 0), "another number: " + said(i, f));
        if (CHANGES) CHECK(changed[(slow + i) * fasts + fast + f] == 1, "changed twice: " + said(i, f));
      }
    }
  // Each is moved once. Of vectors, rows and columns are asked for as often as they have one to move.
  const auto within = [](int i, int first, int size) { return i >= first && i < first + size; };
  for (int i = 0; i < slows; ++i)
    for (int f = 0; f < fasts && !wide; ++f)
      CHECK(read[i * pitch + f] == (within(i, slow, kSlow) && within(f, fast, kFast)), "not read once: " + said(i, f));
  const int rows = std::clamp(slows - slow, 0, kSlow), columns = std::clamp(fasts - fast, 0, kFast);
  for (int i = 0; i < slows && wide; ++i)
    CHECK(asked_slow[i] == (within(i, slow, kSlow) ? (columns + kVector - 1) / kVector : 0), "a row: " + said(i, 0));
  for (int f = 0; f < fasts && wide; ++f)
    CHECK(asked_fast[f] == (within(f, fast, kFast) && (f - fast) % kVector == 0 ? rows : 0), "a column: " + said(0, f));
}

template <class X>
void check_tile_at_edges() {
  using Of = TileOf<X>;
  constexpr int S = Of::kSlow, F = Of::kFast;
  const int sizes[][4] = {
      {S, F, 0, 0}, {3 * S, 3 * F, S, F}, {S - 1, F - 1, 0, 0}, {2 * S + 3, F + 1, 2 * S, F}, {1, 1, 0, 0}, {S, F, S, 0},
      {S, F, 0, F}, {S + 5, 2 * F - 3, 0, F},
  };
  for (const auto& [slows, fasts, slow, fast] : sizes)
    for (const bool wide : {false, true}) {
      check_tile<X, false>(wide, slows, fasts, slow, fast);
      check_tile<X, true>(wide, slows, fasts, slow, fast);
    }
}

CHECKED(tiles_move_each_number_once) {
  for_each_type([](auto type) {
    using T = decltype(type);
    check_tile_at_edges<Tile<T, 64, kDepth<T>, 128>>();
    check_tile_at_edges<Tile<T, kDepth<T>, 128, 256>>();
    check_tile_at_edges<Tile<T, 32, kPooledChannels<T>, 128>>();
    check_tile_at_edges<Tile<T, 6, 64, 64>>();  // threads without a vector in the last round
    check_tile_at_edges<Tile<T, 4, 64, 256>>();  // threads without any
  });
}

CHECKED(tiles_of_shapes_move_each_number_once) {
  for_each_tile([](auto tile) {
    using Of = TileOf<decltype(tile)>;
    if constexpr (kArch >= 80 || !std::is_same_v<typename Of::type, BFloat16>)
      for (const bool wide : {false, true})
        check_tile<decltype(tile), false>(wide, Of::kSlow + 3, Of::kFast + 16, 0, 0);
  });
}

// Each step's tile is read by threads that did not move it, after all of the next tiles have begun.
template <int STAGES, bool WIDE, bool CHANGES>
void check_pipeline() {
  using X = Tile<Half, 16, 32, 64>;
  constexpr int kMost = 8;
  std::vector<Vector> memory(kMost * 16 * 32 / 8);
  Half* const data = reinterpret_cast<Half*>(memory.data());
  for (int i = 0; i < kMost * 16; ++i)
    for (int f = 0; f < 32; ++f) data[i * 32 + f] = stored<Half>(number(i, f));
  for (int steps = 0; steps < kMost; ++steps) {
    std::vector<int> wrong(1), worked(64);
    std::vector<int> changed(kMost * 16 * 32);
    const Source source{Exact<Half>{data}, Strided{32}, Strided{1}, kMost * 16, 32, WIDE};
    run_block(64, STAGES * X::kNumbers * 2 + 256, [&] {
      Half* const shared = reinterpret_cast<Half*>(shared_memory());
      X tile;
      const auto change = [&] {
        if constexpr (CHANGES)
          return Plus100<Half>{changed.data(), 32};
        else
          return Unchanged{};
      }();
      pipeline<STAGES>(
          steps, [&](int step, int stage) { tile.begin(source, shared + stage * X::kNumbers, 16 * step, 0, change); },
          [&](int step, int stage) { tile.end(source, shared + stage * X::kNumbers, 16 * step, 0, change); },
          [&](int step, int stage) {
            wrong[0] += worked[thread()]++ != step;
            for (int e = thread(); e < 16 * 32; e += 64) {
              const int i = 15 - e / 32, f = 31 - e % 32;
              wrong[0] += value(shared[stage * X::kNumbers + i * X::kPitch + f]) !=
                          number(16 * step + i, f) + (CHANGES ? 100 : 0);
            }
          });
      // None of the stages is in use any more.
      for (int e = thread(); e < STAGES * X::kNumbers; e += 64) shared[e] = Half{};
    });
    CHECK(wrong[0] == 0, text({wrong[0]}) + " numbers or steps were wrong: " + text({STAGES, WIDE, CHANGES, steps}));
    CHECK(std::count(worked.begin(), worked.end(), steps) == 64, "steps were left out: " + text({STAGES, steps}));
  }
}

CHECKED(pipelines_work_on_each_step) {
  check_pipeline<2, true, false>(), check_pipeline<2, false, false>(), check_pipeline<2, true, true>();
  check_pipeline<3, true, false>(), check_pipeline<3, false, false>(), check_pipeline<3, true, true>();
  check_pipeline<4, true, false>();
}

// ---- products

int left_number(int depth, int i, int k) { return number(i + 3 * depth, k); }
int right_number(int depth, int k, int j) { return number(j, 5 * k + depth + 1); }

// A block's tiles with these orders of storage, multiplied twice and added up, against three loops.
template <class T, int ROWS, int COLUMNS, int DEPTH, int THREADS, bool LEFT_FAST, bool RIGHT_FAST, class Sums>
void check_product(int kScratch, int kScratchPitch) {
  using A = Accumulator<T>;
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kLeft = (LEFT_FAST ? DEPTH : ROWS) + kVector, kRight = (RIGHT_FAST ? DEPTH : COLUMNS) + kVector;
  constexpr int kLeftNumbers = (LEFT_FAST ? ROWS : DEPTH) * kLeft, kRightNumbers = (RIGHT_FAST ? COLUMNS : DEPTH) * kRight;
  const int front = ((kLeftNumbers + kRightNumbers) * static_cast<int>(sizeof(T)) + 127) / 128 * 128;
  std::vector<double> found(ROWS * COLUMNS, 1e9);
  std::vector<int> written(ROWS * COLUMNS);
  run_block(THREADS, front + kScratch * static_cast<int>(sizeof(A)), [&] {
    T* const left = reinterpret_cast<T*>(shared_memory());
    T* const right = left + kLeftNumbers;
    Sums sums;
    sums.zero();
    for (int step = 0; step < 2; ++step) {
      for (int e = thread(); e < ROWS * DEPTH; e += THREADS) {
        const int i = e / DEPTH, k = e % DEPTH;
        left[LEFT_FAST ? i * kLeft + k : k * kLeft + i] = stored<T>(left_number(step, i, k));
      }
      for (int e = thread(); e < COLUMNS * DEPTH; e += THREADS) {
        const int j = e / DEPTH, k = e % DEPTH;
        right[RIGHT_FAST ? j * kRight + k : k * kRight + j] = stored<T>(right_number(step, k, j));
      }
      block_barrier();
      sums.template add<DEPTH, LEFT_FAST, RIGHT_FAST>(left, kLeft, right, kRight);
      block_barrier();
    }
    A* const scratch = reinterpret_cast<A*>(shared_memory() + front);
    const auto note = [&](const A* band, int row, int column, int columns) {
      for (int e = lane(); e < 16 * columns; e += 32) {
        const int i = e / columns, j = e % columns, at = (row + i) * COLUMNS + column + j;
        found[at] = band[i * kScratchPitch + j];
        ++written[at];
      }
    };
    if constexpr (THREADS == 32) {
      for (int b = 0; b < ROWS / 16; ++b) {
        sums.band(scratch, kScratchPitch, b);
        warp_barrier();
        note(scratch, 16 * b, 0, COLUMNS);
        warp_barrier();
      }
    } else {
      sums.bands(scratch, [&](const A* band, int row, int column) { note(band, row, column, Sums::kWarpColumns); });
    }
  });
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLUMNS; ++j) {
      double expected = 0;
      for (int step = 0; step < 2; ++step)
        for (int k = 0; k < DEPTH; ++k) expected += left_number(step, i, k) * right_number(step, k, j);
      const std::string at = text({ROWS, COLUMNS, DEPTH, LEFT_FAST, RIGHT_FAST, i, j});
      CHECK(written[i * COLUMNS + j] == 1, "not written once: " + at);
      CHECK(found[i * COLUMNS + j] == expected, std::to_string(found[i * COLUMNS + j]) + " is not " +
                                                    std::to_string(expected) + ": " + at);
    }
}

template <class T, int ROWS, int COLUMNS, int DEPTH, int THREADS, class Sums>
void check_orders(int scratch, int scratch_pitch) {
  check_product<T, ROWS, COLUMNS, DEPTH, THREADS, false, false, Sums>(scratch, scratch_pitch);
  check_product<T, ROWS, COLUMNS, DEPTH, THREADS, false, true, Sums>(scratch, scratch_pitch);
  check_product<T, ROWS, COLUMNS, DEPTH, THREADS, true, false, Sums>(scratch, scratch_pitch);
  check_product<T, ROWS, COLUMNS, DEPTH, THREADS, true, true, Sums>(scratch, scratch_pitch);
}

template <class T, int ROWS, int COLUMNS, class Sums>
void check_warp_product() {
  check_orders<T, ROWS, COLUMNS, 32, 32, Sums>(16 * (COLUMNS + 4), COLUMNS + 4);
}

#if LEWEL_EMULATED == 80
CHECKED(tensor_products) {
  check_warp_product<Half, 16, 16, TensorProduct<Half, 16, 16>>();
  check_warp_product<Half, 32, 64, TensorProduct<Half, 32, 64>>();
  check_warp_product<BFloat16, 48, 32, TensorProduct<BFloat16, 48, 32>>();
}
#endif

CHECKED(volta_products) {
  check_warp_product<Half, 16, 16, VoltaProduct<16, 16>>();
  check_warp_product<Half, 32, 64, VoltaProduct<32, 64>>();
  check_warp_product<Half, 48, 32, VoltaProduct<48, 32>>();
}

CHECKED(plain_products) {
  check_warp_product<float, 16, 16, PlainProduct<float, 16, 16>>();
  check_warp_product<float, 32, 64, PlainProduct<float, 32, 64>>();
  check_warp_product<double, 48, 32, PlainProduct<double, 48, 32>>();
  check_warp_product<Half, 16, 32, PlainProduct<Half, 16, 32>>();
}

template <class T, int ROWS, int COLUMNS, int WARPS_R, int WARPS_C>
void check_block_product() {
  using Sums = Product<T, ROWS, COLUMNS, WARPS_R, WARPS_C>;
  static_assert(Sums::kThreads == 32 * WARPS_R * WARPS_C && Sums::kWarpColumns == COLUMNS / WARPS_C);
  check_orders<T, ROWS, COLUMNS, kDepth<T>, Sums::kThreads, Sums>(Sums::kScratch, Sums::kScratchPitch);
}

CHECKED(block_products) {
  for_each_type([](auto type) {
    using T = decltype(type);
    check_block_product<T, 64, 64, 2, 2>();
    check_block_product<T, 32, 64, 1, 4>();
    check_block_product<T, 128, 64, 4, 2>();
    check_block_product<T, 64, 128, 2, 4>();
  });
}

CHECKED(sums_are_set_aside_and_recalled) {
  using Sums = Product<float, 64, 64, 2, 2>;
  for (const int steps : {1, 15, 16, 17, 31, 32, 33, 50}) {
    std::vector<double> found(64 * 64);
    // The reach of a float32 is not enough for the whole sum, but for the sum of so many steps it is.
    run_block(Sums::kThreads, (Sums::kScratch + Sums::kAside + 64 * 32) * 4, [&] {
      float* const aside = reinterpret_cast<float*>(shared_memory());
      float* const scratch = aside + Sums::kAside;
      float* const tile = scratch + Sums::kScratch;  // (16, 64) twice, at a pitch of 64
      Sums sums;
      sums.zero();
      for (int step = 0; step < steps; ++step) {
        for (int e = thread(); e < 16 * 64; e += Sums::kThreads) {
          tile[e] = static_cast<float>(left_number(step, e % 64, e / 64));
          tile[1024 + e] = static_cast<float>(right_number(step, e / 64, e % 64));
        }
        block_barrier();
        sums.add<16, false, false>(tile, 64, tile + 1024, 64);
        sums.set_aside(aside, step);
        block_barrier();
      }
      sums.recall(aside, steps);
      sums.bands(scratch, [&](const float* band, int row, int column) {
        for (int e = lane(); e < 16 * Sums::kWarpColumns; e += 32) {
          const int i = e / Sums::kWarpColumns, j = e % Sums::kWarpColumns;
          found[(row + i) * 64 + column + j] = band[i * Sums::kScratchPitch + j];
        }
      });
    });
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < 64; ++j) {
        double expected = 0;
        for (int step = 0; step < steps; ++step)
          for (int k = 0; k < 16; ++k) expected += left_number(step, i, k) * right_number(step, k, j);
        CHECK(found[i * 64 + j] == expected, text({steps, i, j}));
      }
  }
}

// ---- writing

// A band of 16 x 32 at (row, column) of a destination of `rows` x `columns` numbers at a pitch.
template <class T, class To>
void check_band(bool wide, bool rows_fast, bool add, int rows, int columns, int row, int column) {
  using A = Accumulator<T>;
  constexpr int kVector = 16 / sizeof(To), kBandPitch = 36;
  const int pitch = (std::max(columns, 64) + kVector - 1) / kVector * kVector, slow = rows_fast ? 80 : pitch;
  std::vector<Vector> memory(80 * 80 * sizeof(To) / 16);
  To* const data = reinterpret_cast<To*>(memory.data());
  for (int i = 0; i < 80 * 80; ++i) data[i] = stored<To>(number(i, 3));
  const auto offset = [&](int i, int j) { return rows_fast ? j * slow + i : i * slow + j; };
  const Destination to{Mixed{data, kNumber<To>}, Strided{rows_fast ? 1 : slow}, Strided{rows_fast ? slow : 1},
                       rows, columns, wide, rows_fast, add};
  std::vector<A> band(16 * kBandPitch);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 32; ++j) band[i * kBandPitch + j] = static_cast<A>(number(i, j + 40) + 0.25);
  run_block(32, 128, [&] { write_band<T, 32>(to, band.data(), kBandPitch, row, column); });
  std::vector<double> expected(80 * 80);
  for (int i = 0; i < 80 * 80; ++i) expected[i] = number(i, 3);
  for (int i = 0; i < 16 && row + i < rows; ++i)
    for (int j = 0; j < 32 && column + j < columns; ++j) {
      double& x = expected[offset(row + i, column + j)];
      x = number(i, j + 40) + 0.25 + (add ? x : 0);
    }
  for (int i = 0; i < 80 * 80; ++i)
    CHECK(value(data[i]) == expected[i], std::to_string(value(data[i])) + " is not " + std::to_string(expected[i]) +
                                             ": " + text({wide, rows_fast, add, rows, columns, row, column, i}));
}

CHECKED(bands_are_written) {
  for_each_type([](auto type) {
    using T = decltype(type);
    const int places[][4] = {{64, 64, 0, 0}, {64, 64, 16, 32}, {21, 64, 16, 0}, {64, 45, 0, 32},
                             {64, 33, 48, 32}, {5, 7, 0, 0}, {1, 13, 0, 0}, {16, 32, 16, 0}, {16, 32, 0, 32}};
    for (const auto& [rows, columns, row, column] : places)
      for (const bool add : {false, true}) {
        check_band<T, T>(true, false, add, rows, columns, row, column);
        check_band<T, T>(false, false, add, rows, columns, row, column);
        check_band<T, T>(false, true, add, rows, columns, row, column);
        for_each_type([&](auto other) {
          if constexpr (sizeof(T) == 8 || sizeof(other) < 8)
            check_band<T, decltype(other)>(false, false, add, rows, columns, row, column);
        });
      }
  });
}

CHECKED(mixed_numbers) {
  for_each_type([](auto type) {
    using T = decltype(type);
    alignas(16) T numbers[8] = {};
    for (int i = 0; i < 8; ++i) numbers[i] = stored<T>(number(i, 1) + 0.5);
    const Mixed x{numbers, kNumber<T>}, later = x.after(3);
    CHECK(later.data == numbers + 3 && later.number == kNumber<T>, "after");
    CHECK(x.after(int64{1} << 33).data == reinterpret_cast<char*>(numbers) + (int64{1} << 33) * sizeof(T), "far after");
    for (int i = 0; i < 5; ++i) {
      CHECK(later.get<double>(i) == value(numbers[3 + i]) && later.get<float>(i) == value(numbers[3 + i]), "get");
      CHECK(value(Converted<float>{later}.at(i)) == value(numbers[3 + i]), "at");
    }
    CHECK(Converted<T>{later}.address(2) == numbers + 5 && Exact<T>{numbers}.address(2) == numbers + 2, "address");
    later.set(1, -2.5f), later.set(2, 7.75);
    CHECK(value(numbers[4]) == -2.5 && value(numbers[5]) == 7.75 && value(numbers[3]) == number(3, 1) + 0.5, "set");
  });
  alignas(16) double pi = 3.14159265358979;
  CHECK((Mixed{&pi, Number::f64}.get<double>(0)) == pi, "a float64 passes a float32 on its way");
}

// ---- the workspace of whole calls

struct Sizes {
  int64 N, C, D, K, P, G;
};

// The tensors of a call, of float64, contiguous.
class Tensors {
 public:
  explicit Tensors(Sizes sizes) : of_(sizes) {}

  View operator()(std::initializer_list<int64> sizes) {
    View x = view(nullptr, Number::f64, sizes, {});
    int64 count = 1;
    for (int i = static_cast<int>(sizes.size()) - 1; i >= 0; --i) x.stride[i] = count, count *= x.size[i];
    kept_.emplace_back(count, 0.5);
    x.data = kept_.back().data();
    return x;
  }
  void fill(Call& q, bool affine, bool shared) {
    const auto [N, C, D, K, P, G] = of_;
    q.features = (*this)({N, C, P});
    q.pixels = shared ? q.features : (*this)({N, D, P});
    q.weight = (*this)({K, shared ? C : D});
    q.bias = (*this)({K});
    if (affine) q.scale = (*this)({D}), q.shift = (*this)({D});
    q.heat = (*this)({N, K, P});
    q.norm = (*this)({N, P});
    q.groups = G;
    q.temperature = 0.1, q.eps = 1e-12;
  }

 private:
  Sizes of_;
  std::vector<std::vector<double>> kept_;
};

// Runs twice, as registration.cpp does, the second time with as many bytes as the first has counted.
template <class Q>
void check_workspace(const Q& q, void (*run)(const Q&, Workspace&, const Device*), const std::string& said) {
  Workspace counted;
  run(q, counted, nullptr);
  constexpr int kBeside = 4096;
  std::vector<Vector> memory((counted.bytes() + 2 * kBeside) / 16 + 16);
  char* base = reinterpret_cast<char*>(memory.data());
  std::memset(base, 0xf5, memory.size() * 16);
  base += 256 - reinterpret_cast<std::uintptr_t>(base) % 256;
  Workspace workspace(base + kBeside);
  Device device{};
  device.arch = kArch;
  run(q, workspace, &device);
  CHECK(workspace.bytes() == counted.bytes(), said + ": bytes counted and taken: " + text({counted.bytes(), workspace.bytes()}));
  for (const char* beside : {base, base + kBeside + counted.bytes()})
    for (int i = 0; i < kBeside; ++i) CHECK(beside[i] == '\xf5', said + ": written beside the workspace");
}

void check_workspaces(const Sizes& sizes, bool affine, bool shared) {
  const auto [N, C, D, K, P, G] = sizes;
  const int64 width = shared ? C : D;
  for (const bool maps : {false, true}) {
    Tensors tensors(sizes);
    Forward q;
    tensors.fill(q, affine, shared);
    q.pooled = tensors({N, K / G, C});
    if (maps) q.maps = tensors({N, K, P});
    check_workspace<Forward>(q, forward<double>, text({K, P, affine, shared, maps}));
  }
  for (int needs = 0; needs < 64; ++needs) {
    if ((shared && needs & 2) || (!affine && needs & 48)) continue;
    Tensors tensors(sizes);
    Backward q;
    tensors.fill(q, affine, shared);
    q.grad_pooled = tensors({N, K / G, C});
    if (needs % 3) q.grad_maps = tensors({N, K, P});
    q.project_features = shared;
    if (needs & 1) q.d_features = tensors({N, C, P});
    if (needs & 2) q.d_pixels = tensors({N, width, P});
    if (needs & 4) q.d_weight = tensors({K, width});
    if (needs & 8) q.d_bias = tensors({K});
    if (needs & 16) q.d_scale = tensors({D});
    if (needs & 32) q.d_shift = tensors({D});
    check_workspace<Backward>(q, backward<double>, text({K, P, affine, shared, needs}));
  }
}

CHECKED(calls_take_what_they_count) {
  for (const Sizes& sizes : {Sizes{2, 8, 5, 6, 9, 2}, Sizes{3, 6, 70, 80, 70, 2}, Sizes{1, 3, 2, 66, 3, 1}}) {
    check_workspaces(sizes, false, false);
    check_workspaces(sizes, false, true);
    check_workspaces(sizes, true, false);
  }
}

// ---- indices beyond 32 bits: the last block of a launch that nobody could wait for, on memory that is hardly there

// Zeros, of which only the pages that are written take memory.
template <class X>
class Sparse {
 public:
  explicit Sparse(int64 count) : bytes_(count * sizeof(X)) {
    void* const p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      std::printf("this machine has no %zu bytes of addresses to give\n", bytes_);
      std::exit(77);
    }
    data = static_cast<X*>(p);
  }
  ~Sparse() { munmap(data, bytes_); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;

  X& operator[](int64 i) { return data[i]; }

  X* data;

 private:
  size_t bytes_;
};

// One block of a launch, wherever it is.
void run_block_at(int x, int y, int z, int threads, int shared_bytes, const std::function<void()>& kernel) {
  emulation::run({1, 1, 1}, threads, shared_bytes, [&] {
    auto* const place = const_cast<emulation::Place*>(emulation::here);
    place->x = x, place->y = y, place->z = z;
    kernel();
  });
}

constexpr int kFarK = 128, kFarP = 65, kFarD = 136, kFarL = 32, kFarWidth = 8, kFarC = 32, kFarG = 4;
constexpr int kFarN = static_cast<int>(kLast / kFarP), kFarR = kFarN * kFarP;
static_assert(int64{kFarN} * kFarK > kLast && int64{kFarR} < kLast);

bool same_bits(const void* p, const void* q, size_t bytes) { return std::memcmp(p, q, bytes) == 0; }

// Everything that kernels read and write about N images of which the last alone is not zero.
struct Far {
  using T = Half;
  int N;
  int64 R = int64{N} * kFarP;
  Sparse<T> heat{R * kFarK}, d_heat{R * kFarK}, pixels{R * kFarD}, features{R * kFarC}, weight{kFarK * kFarD};
  Sparse<T> grad_pooled{int64{N} * kFarL * kFarC}, grad_maps{R * kFarK};
  Sparse<T> pooled{int64{N} * kFarL * kFarC}, maps{R * kFarK}, d_features{R * kFarC}, d_pixels{R * kFarD};
  Sparse<float> norm{R}, top{int64{N} * kFarK}, inverse{int64{N} * kFarK}, d_maps{R * kFarK};
  Sparse<float> delta{int64{N} * kFarK}, deltas{2 * int64{N} * kFarK}, scale{kFarD}, shift{kFarD};
  Sparse<float> d_scale{R / 64 * kFarD + kFarD}, d_shift{R / 64 * kFarD + kFarD};

  explicit Far(int n) : N(n) {
    const int64 row = R - kFarP, image = N - 1;
    const auto noise = [](int64 i, int64 j) { return number(i, j) * 0.125 + number(j, i + 1) * 0.01; };
    for (int64 p = 0; p < kFarP; ++p) {
      double square = 0;
      for (int64 k = 0; k < kFarK; ++k) {
        const T heat_here = heat[(row + p) * kFarK + k] = stored<T>(noise(p, k));
        square += value(heat_here) * value(heat_here);
        d_heat[(row + p) * kFarK + k] = stored<T>(number(p, k));
        grad_maps[(row + p) * kFarK + k] = stored<T>(noise(p + 5, k));  // (K, P), but any order will do
        d_maps[(row + p) * kFarK + k] = static_cast<float>(noise(p + 7, k));
      }
      norm[row + p] = static_cast<float>(std::sqrt(square));
      for (int64 d = 0; d < kFarD; ++d) pixels[(row + p) * kFarD + d] = stored<T>(number(p, d + 3));
      for (int64 c = 0; c < kFarC; ++c) features[(row + p) * kFarC + c] = stored<T>(noise(p, c + 9));
    }
    for (int64 k = 0; k < kFarK; ++k) {
      top[image * kFarK + k] = static_cast<float>(0.1 + 0.001 * static_cast<double>(k));
      inverse[image * kFarK + k] = static_cast<float>(0.02 + 0.0001 * static_cast<double>(k));
      delta[image * kFarK + k] = static_cast<float>(noise(k, 2));
    }
    for (int64 i = 0; i < kFarL * kFarC; ++i) grad_pooled[image * kFarL * kFarC + i] = stored<T>(noise(i, 11));
    for (int64 i = 0; i < kFarK * kFarD; ++i) weight[i] = stored<T>(number(i, 4));
    for (int64 d = 0; d < kFarD; ++d) scale[d] = static_cast<float>(number(d, 6)), shift[d] = static_cast<float>(number(d, 7));
  }

  HeatMaps<T> heat_maps() const { return {heat.data, norm.data, kFarP, kFarK, 1e-12f, 10.0f}; }
  Softmax<float> softmax() const { return {top.data, inverse.data}; }
  Images<T> rows(const Sparse<T>& x, int width) const { return {x.data, int64{kFarP} * width, 1, width, true}; }
};

// Runs the same of a batch of one image and of a far one; then `compare` is called with both.
void far(const std::function<void(Far&)>& run, const std::function<void(Far& near, Far& far)>& compare) {
  Far near_one(1), far_one(kFarN);
  run(near_one);
  run(far_one);
  compare(near_one, far_one);
}

// That `count` numbers of the last image of x are those of the only image of y, and not all zero.
template <class X>
void check_same(const Sparse<X>& x, const Sparse<X>& y, int64 count, const char* what) {
  const X* const last = x.data + int64{kFarN - 1} * count;
  CHECK(same_bits(last, y.data, count * sizeof(X)), std::string(what) + " of the last image is another");
  CHECK(std::any_of(last, last + count, [](X a) { return value(a) != 0; }), std::string(what) + " is zero");
}

CHECKED(far_project) {
  using Shape = ProjectShape<Half, 128, false>;
  const auto run = [](Far& f) {
    const Project<Half> q{f.rows(f.pixels, kFarD), Divider::of(kFarP), {f.weight.data, kFarD, 1, true}, nullptr, 0, {},
                          f.heat.data, f.norm.data, static_cast<int>(f.R), kFarD, kFarK};
    std::memset(f.heat.data + (f.R - kFarP) * kFarK, 0xff, kFarP * kFarK * sizeof(Half));
    for (int64 block = (f.R - kFarP) / Shape::kRows; block * Shape::kRows < f.R; ++block)
      run_block_at(static_cast<int>(block), 0, 0, Shape::kThreads, Shape::bytes(stages_on<Half>(kArch), kFarD),
                   [&] { project_kernel<Half, 128, false, false>(q); });
  };
  far(run, [](Far& one, Far& f) {
    check_same(f.heat, one.heat, kFarP * kFarK, "heat");
    check_same(f.norm, one.norm, kFarP, "norm");
  });
}

CHECKED(far_softmax) {
  const auto run = [](Far& f) {
    for (int y = 0; y < kFarK / SoftmaxShape::kMaps; ++y)
      run_block_at(f.N - 1, y, 0, SoftmaxShape::kThreads, SoftmaxShape::bytes<float>(),
                   [&] { softmax_kernel<Half>(f.heat_maps(), f.softmax()); });
  };
  far(run, [](Far& one, Far& f) {
    check_same(f.top, one.top, kFarK, "top");
    check_same(f.inverse, one.inverse, kFarK, "inverse");
    CHECK(value(f.inverse[int64{kFarN - 1} * kFarK]) != 0.02f, "nothing is written");
  });
}

CHECKED(far_pool) {
  using Shape = PoolShape<Half, 32, false>;
  const auto run = [](Far& f) {
    const Pool<Half> q{f.rows(f.features, kFarC), f.heat_maps(), f.softmax(), Mixed{f.pooled.data, Number::f16}, true,
                       kFarC, kFarWidth, kFarL, 1};
    for (int y = 0; y < kFarG; ++y)
      run_block_at(f.N - 1, y, 0, Shape::kThreads, Shape::bytes(stages_on<Half>(kArch)),
                   [&] { pool_kernel<Half, 32, false>(q); });
  };
  far(run, [](Far& one, Far& f) { check_same(f.pooled, one.pooled, kFarL * kFarC, "pooled"); });
}

CHECKED(far_maps) {
  const auto run = [](Far& f) {
    for (int x = 0; x < 3; ++x)
      for (int y = 0; y < kFarK / 32; ++y)
        run_block_at((f.N - 1) * 3 + x, y, 0, MapsShape::kThreads, MapsShape::bytes<float>(),
                     [&] { maps_kernel<Half>(f.heat_maps(), f.softmax(), Mixed{f.maps.data, Number::f16}); });
  };
  far(run, [](Far& one, Far& f) { check_same(f.maps, one.maps, kFarK * kFarP, "maps"); });
}

CHECKED(far_pool_bwd) {
  using Shape = PoolBackwardShape<Half, 32, false>;
  const auto run = [](Far& f) {
    const PoolBackward<Half> q{
        f.rows(f.features, kFarC), f.heat_maps(), f.softmax(), Mixed{f.grad_pooled.data, Number::f16}, kFarL * kFarC,
        kFarC, 1, true, Mixed{f.grad_maps.data, Number::f16}, kFarK * kFarP, kFarP, 1,
        Mixed{f.d_features.data, Number::f16}, kFarC * kFarP, 1, kFarC, true, false, f.d_maps.data, f.deltas.data, f.N,
        kFarC, kFarWidth, kFarL};
    for (int x = 0; x < 2; ++x)
      for (int y = 0; y < kFarG; ++y)
        run_block_at((f.N - 1) * 2 + x, y, 0, Shape::kThreads, Shape::bytes(stages_on<Half>(kArch)),
                     [&] { pool_bwd_kernel<Half, 32, false>(q); });
  };
  far(run, [](Far& one, Far& f) {
    check_same(f.d_maps, one.d_maps, kFarP * kFarK, "dA");
    check_same(f.d_features, one.d_features, kFarP * kFarC, "the gradient of features");
    for (const int64 tile : {0, 1}) {
      const float* const found = f.deltas.data + (tile * kFarN + kFarN - 1) * kFarK;
      CHECK(same_bits(found, one.deltas.data + tile * kFarK, kFarK * 4) && *found != 0, "delta of a tile is another");
    }
  });
}

CHECKED(far_maps_bwd) {
  const auto run = [](Far& f) {
    const MapsBackward<Half> q{f.heat_maps(), f.softmax(), f.delta.data, f.d_maps.data, f.d_heat.data,
                               Divider::of(kFarP), 10.0f, static_cast<int>(f.R)};
    std::memset(f.d_heat.data + (f.R - kFarP) * kFarK, 0xff, kFarP * kFarK * sizeof(Half));
    for (int64 block = (f.R - kFarP) / 4; block * 4 < f.R; ++block)
      run_block_at(static_cast<int>(block), 0, 0, kMapsBackwardThreads, 0, [&] { maps_bwd_kernel<Half>(q); });
  };
  far(run, [](Far& one, Far& f) { check_same(f.d_heat, one.d_heat, kFarP * kFarK, "dM"); });
}

CHECKED(far_pixels_bwd) {
  using Shape = PixelsBackwardShape<Half>;
  const auto run = [](Far& f) {
    const PixelsBackward<Half> q{f.d_heat.data, {f.weight.data, kFarD, 1, true}, f.rows(f.pixels, kFarD),
                                 {f.scale.data, f.shift.data}, Divider::of(kFarP), Mixed{f.d_pixels.data, Number::f16},
                                 kFarP * kFarD, 1, kFarD, true, false, false, f.d_scale.data, f.d_shift.data,
                                 static_cast<int>(f.R), kFarK, kFarD};
    for (int64 block = (f.R - kFarP) / Shape::kRows; block * Shape::kRows < f.R; ++block)
      for (int y = 0; y < 2; ++y)
        run_block_at(static_cast<int>(block), y, 0, Shape::kThreads, Shape::bytes(stages_on<Half>(kArch), true),
                     [&] { pixels_bwd_kernel<Half, true>(q); });
  };
  far(run, [](Far& one, Far& f) {
    check_same(f.d_pixels, one.d_pixels, kFarP * kFarD, "the gradient of pixels");
    // The rows of the last image may be shared out to two blocks; other rows of these are zero.
    const int64 first = (f.R - kFarP) / Shape::kRows, last = (f.R - 1) / Shape::kRows;
    static_assert(int64{kFarR} / Shape::kRows * kFarD > kLast, "d_scale is not far");
    for (int d = 0; d < kFarD; ++d) {
      double scale = 0, shift = 0;
      for (int64 block = first; block <= last; ++block)
        scale += f.d_scale[block * kFarD + d], shift += f.d_shift[block * kFarD + d];
      CHECK(scale == one.d_scale[d] && shift == one.d_shift[d], "the gradient of scale or shift is another");
    }
    CHECK(std::any_of(one.d_scale.data, one.d_scale.data + kFarD, [](float x) { return x != 0; }), "d_scale is zero");
  });
}

CHECKED(far_weight_bwd) {
  using Shape = WeightBackwardShape<Half, 128, false>;
  Far f(kFarN);
  const int64 count = ceil_div(f.R, kDepth<Half>);  // a part for each step
  Sparse<float> d_weight(count * kFarK * kFarD);
  Sparse<double> d_bias(count * kFarK);
  const WeightBackward<Half> q{f.d_heat.data, f.rows(f.pixels, kFarD), Divider::of(kFarP), {}, d_weight.data, kFarD, 1,
                               true, d_bias.data, {1, count}, static_cast<int>(f.R), kFarK, kFarD};
  double found = 0, found_bias = 0;
  const auto check = [&](int64 part) {
    for (int x = 0; x < 2; ++x)
      run_block_at(x, 0, static_cast<int>(part), Shape::kThreads, Shape::bytes(stages_on<Half>(kArch)),
                   [&] { weight_bwd_kernel<Half, 128, false, false>(q); });
    for (int k = 0; k < kFarK; ++k) {
      double bias = 0;
      for (int64 row = part * 32; row < std::min(part * 32 + 32, f.R); ++row) bias += value(f.d_heat[row * kFarK + k]);
      CHECK(d_bias[part * kFarK + k] == bias, "the gradient of bias " + text({part, k}));
      found_bias += std::abs(bias);
      for (int d = 0; d < kFarD; ++d) {
        double expected = 0;
        for (int64 row = part * 32; row < std::min(part * 32 + 32, f.R); ++row)
          expected += value(f.d_heat[row * kFarK + k]) * value(f.pixels[row * kFarD + d]);
        CHECK(d_weight[(part * kFarK + k) * kFarD + d] == expected, "the gradient of weight " + text({part, k, d}));
        found += std::abs(expected);
      }
    }
  };
  check(count - 1);
  check(count - 2);
  CHECK(found > 0 && found_bias > 0, "everything is zero");
}

CHECKED(far_sum) {
  const int64 size = (int64{1} << 32) + 100, block = size / kSumThreads;
  Sparse<float> parts(3 * size), to(size);
  for (int64 part = 0; part < 3; ++part)
    for (int64 i = size - 300; i < size; ++i) parts[part * size + i] = static_cast<float>(number(i - size + 300, part));
  for (const int64 x : {block - 1, block})
    run_block_at(static_cast<int>(x), 0, 0, kSumThreads, 0,
                 [&] { sum_kernel<float>(parts.data, Mixed{to.data, Number::f32}, 3, size); });
  for (int64 i = size - 300; i < size; ++i) {
    const int64 j = i - size + 300;
    CHECK(to[i] == number(j, 0) + number(j, 1) + number(j, 2), text({i}));
  }
}

}  // namespace
