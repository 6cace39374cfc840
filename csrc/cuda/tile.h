// Tiles of matrices on their way from global to shared memory.
#pragma once

#include "cuda/tiling.h"

namespace lewel::cuda {

// Numbers of one type in memory.
template <class T>
struct Exact {
  const T* data;

  LEWEL_DEVICE T at(int64 offset) const { return data[offset]; }
  LEWEL_DEVICE const void* address(int64 offset) const { return data + offset; }
};

// Numbers of a type that is known only when the kernel runs: the results of the op and their gradients.
struct Mixed {
  void* data;
  Number number;

  LEWEL_HOST_DEVICE Mixed after(int64 numbers) const {
    const int size = number == Number::f64 ? 8 : number == Number::f32 ? 4 : 2;
    return {static_cast<char*>(data) + numbers * size, number};
  }
  template <class A>
  LEWEL_DEVICE A get(int64 offset) const {
    switch (number) {
      case Number::f64: return static_cast<A>(static_cast<const double*>(data)[offset]);
      case Number::f16: return widen<float>(static_cast<const Half*>(data)[offset]);
      case Number::bf16: return widen<float>(static_cast<const BFloat16*>(data)[offset]);
      default: return static_cast<const float*>(data)[offset];
    }
  }
  template <class A>
  LEWEL_DEVICE void set(int64 offset, A x) const {
    switch (number) {
      case Number::f64: static_cast<double*>(data)[offset] = x; break;
      case Number::f16: static_cast<Half*>(data)[offset] = rounded<Half>(static_cast<float>(x)); break;
      case Number::bf16: static_cast<BFloat16*>(data)[offset] = rounded<BFloat16>(static_cast<float>(x)); break;
      default: static_cast<float*>(data)[offset] = static_cast<float>(x);
    }
  }
};

// The same, read as T.
template <class T>
struct Converted {
  Mixed mixed;

  LEWEL_DEVICE T at(int64 offset) const { return rounded<T>(mixed.get<Accumulator<T>>(offset)); }
  LEWEL_DEVICE const void* address(int64 offset) const { return static_cast<const T*>(mixed.data) + offset; }
};

// A matrix in global memory, slows x fasts. `wide`: 16 bytes may be moved at a time along the fast axis.
template <class Numbers, class Slow, class Fast>
struct Source {
  Numbers numbers;
  Slow slow;
  Fast fast;
  int slows, fasts;
  bool wide;
};
template <class Numbers, class Slow, class Fast>
Source(Numbers, Slow, Fast, int, int, bool) -> Source<Numbers, Slow, Fast>;

struct Unchanged {
  static constexpr bool kChanges = false;
};

// SLOW x FAST numbers of a source, moved by the threads of a block; beyond its edges they are zero. In shared memory a
// row takes kPitch numbers: 16 bytes more than a multiple of 64, so that products read columns of it from all banks.
//
// `begin` starts the loads and `end` finishes them; between the two the block works on tiles that have arrived. On
// sm_80 the GPU copies by itself, and nothing is held in registers. Numbers that cannot be moved 16 bytes at a time are
// moved one by one, by `end` alone: to hold them meanwhile would take more registers than the waiting costs.
template <class T, int SLOW, int FAST, int THREADS>
class Tile {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kVectors = SLOW * FAST / kVector;
  static constexpr int kEach = (kVectors + THREADS - 1) / THREADS;
  static_assert(FAST % kVector == 0);

 public:
  static constexpr int kPitch = FAST + kVector;
  static constexpr int kNumbers = SLOW * kPitch;

  // `change` is applied to every number that the source has, by `end`: change(x, slow index, fast index).
  template <class S, class Change = Unchanged>
  LEWEL_DEVICE void begin(const S& source, T* shared, int slow, int fast, Change = {}) {
    if (!source.wide) return;
    if constexpr (copies_itself<Change>()) {
      if (slow + SLOW <= source.slows && fast + FAST <= source.fasts) {  // nothing is beyond an edge
        each_vector([&](int, int i, int f) {
          copy_async(shared + i * kPitch + f,
                     source.numbers.address(source.slow(slow + i) + source.fast.together(fast + f)), 16);
        });
        return;
      }
    }
    each_vector([&](int j, int i, int f) {
      const int left = source.fasts - fast - f;
      const int count = slow + i >= source.slows || left < 0 ? 0 : left < kVector ? left : kVector;
      const int64 offset = count ? source.slow(slow + i) + source.fast.together(fast + f) : 0;
      if constexpr (copies_itself<Change>()) {
        copy_async(shared + i * kPitch + f, source.numbers.address(offset), count * static_cast<int>(sizeof(T)));
      } else if (count == kVector) {
        *reinterpret_cast<Vector*>(&held_[j * kVector]) = *static_cast<const Vector*>(source.numbers.address(offset));
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) held_[j * kVector + e] = e < count ? source.numbers.at(offset + e) : T{};
      }
    });
  }

  template <class S, class Change = Unchanged>
  LEWEL_DEVICE void end(const S& source, T* shared, int slow, int fast, Change change = {}) {
    const auto changed = [&](T x, int i, int f) {
      if constexpr (Change::kChanges)
        if (i < source.slows && f < source.fasts) return change(x, i, f);
      return x;
    };
    if (!source.wide) {
      // Neighbours are loaded by neighbouring threads, and a thread stays at its place along the fast axis.
      static_assert(THREADS % FAST == 0 && SLOW * FAST % THREADS == 0);
      const int t = opaque(thread()), first = t / FAST, f = t % FAST;
      const bool there = fast + f < source.fasts;
      const int64 at = there ? source.fast(fast + f) : 0;
#pragma unroll(kArch >= 80 ? 8 : 4)
      for (int n = 0; n < SLOW * FAST / THREADS; ++n) {
        const int i = first + n * (THREADS / FAST);
        const T x = there && slow + i < source.slows ? source.numbers.at(source.slow(slow + i) + at) : T{};
        shared[i * kPitch + f] = changed(x, slow + i, fast + f);
      }
    } else if constexpr (!copies_itself<Change>()) {
      each_vector([&](int j, int i, int f) {
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          held_[j * kVector + e] = changed(held_[j * kVector + e], slow + i, fast + f + e);
        *reinterpret_cast<Vector*>(shared + i * kPitch + f) = *reinterpret_cast<const Vector*>(&held_[j * kVector]);
      });
    }
  }

 private:
  template <class Change>
  LEWEL_DEVICE static constexpr bool copies_itself() {
    return kArch >= 80 && !Change::kChanges;
  }

  // use(j, i, f) for the vectors of this thread: its j-th is at slow index i, fast index f of the tile. Opaque: kept
  // from step to step, the offsets of all of them would take the registers of a quarter of the sums.
  template <class Use>
  LEWEL_DEVICE static void each_vector(Use use) {
    const uint32 first = opaque(thread());
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const uint32 v = first + j * THREADS;
      if (kVectors % THREADS == 0 || v < kVectors) use(j, v / (FAST / kVector), v % (FAST / kVector) * kVector);
    }
  }

  alignas(16) T held_[kEach * kVector];
};

// Runs work(stage) for each step, while the tiles of the next STAGES - 1 steps are on their way. begin(step, stage) and
// end(step, stage) move them. When it returns no thread reads or writes the memory of a stage any more.
template <int STAGES, class Begin, class End, class Work>
LEWEL_DEVICE void pipeline(int steps, Begin begin, End end, Work work) {
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) {
      begin(step, step);
      end(step, step);
    }
    if constexpr (kArch >= 80) copy_async_commit();
  }
  for (int step = 0, stage = 0; step < steps; ++step) {
    if constexpr (kArch >= 80) copy_async_wait<STAGES - 2>();
    block_barrier();  // the tiles of this step are there, and those of the last one have been read
    const int next = step + STAGES - 1, free = stage == 0 ? STAGES - 1 : stage - 1;
    if (next < steps) begin(next, free);
    if constexpr (kArch >= 80) copy_async_commit();
    work(step, stage);
    if (next < steps) end(next, free);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  if constexpr (kArch >= 80) copy_async_wait<0>();
  block_barrier();
}

}  // namespace lewel::cuda
