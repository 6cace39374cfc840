// Tasks on the host's threads, and each thread's scratch memory.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <type_traits>

#include "vector.h"

namespace lewel::cpu {

// Says so without memory, and is thrown with what the C++ library keeps for that.
class OutOfMemory : public std::exception {
 public:
  OutOfMemory(size_t bytes, const char* purpose) {
    std::snprintf(said_, sizeof(said_), "out of memory: %zu bytes for %s", bytes, purpose);
  }
  const char* what() const noexcept override { return said_; }

 private:
  char said_[192];
};

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory allocate(size_t bytes, const char* purpose) {
  Memory memory(::operator new(bytes, std::align_val_t{64}, std::nothrow));
  if (!memory) throw OutOfMemory(bytes, purpose);
  return memory;
}

// Runs work(context, i) for every i in [0, tasks), in any order and on any thread. What one throws ends the others early
// and is thrown again here. Defined by registration.cpp over the thread pool of torch, so that the op obeys
// torch.set_num_threads and never competes with it.
void run_tasks(int64_t tasks, void (*work)(void*, int64_t), void* context);

// No result may depend on which thread ran a task: a task writes its own part of the output, and its sums are its own.
template <class F>
void for_each_task(int64_t tasks, F&& f) {
  const auto work = [](void* context, int64_t i) {
    (*static_cast<std::remove_reference_t<F>*>(context))(i);
    stream_fence();
  };
  run_tasks(tasks, work, &f);
}

// Kept between calls, because fresh pages cost more than the arithmetic of a small problem. Above the bound it is
// returned at the end of the call.
class Arena {
 public:
  static constexpr size_t kKept = size_t{8} << 20;

  static Arena& of_this_thread() {
    thread_local Arena arena;
    return arena;
  }
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      release();  // before the new block, so that the peak is one block
      memory_ = allocate(bytes, "the scratch of a thread; fewer positions or maps take less, and so do fewer threads");
      size_ = bytes;
    }
    return memory_.get();
  }
  void trim() {
    if (size_ > kKept) release();
  }

 private:
  void release() {
    memory_.reset();
    size_ = 0;
  }

  Memory memory_;
  size_t size_ = 0;
};

// Arrays of the given numbers of elements from this thread's scratch, valid until its next call.
template <class A, class... Counts>
std::array<A*, sizeof...(Counts)> scratch(Counts... counts) {
  constexpr int64_t line = 64 / sizeof(A);
  const int64_t rounded[] = {(counts + line - 1) / line * line...};
  int64_t total = 0;
  for (int64_t count : rounded) total += count;
  A* next = static_cast<A*>(Arena::of_this_thread().reserve(total * sizeof(A)));
  std::array<A*, sizeof...(Counts)> arrays;
  for (size_t i = 0; i < sizeof...(Counts); ++i) {
    arrays[i] = next;
    next += rounded[i];
  }
  return arrays;
}

}  // namespace lewel::cpu
