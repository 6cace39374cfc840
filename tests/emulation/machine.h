// The emulated machine as cuda/device.h and cuda/start.h see it: the same for every kArch.
#pragma once

#include <string>

namespace lewel::cuda {

// The blocks of a launch.
struct Grid {
  int x, y, z;
};

namespace emulation {

// How many threads of this machine blocks are spread over; at first 4, or fewer where there are fewer processors or
// OMP_NUM_THREADS says so. No result depends on it.
extern int threads;

// A line of a kernel, for what is said about it. As a default argument, called() is the line of the call.
struct Line {
  const char* file;
  int number;

  static constexpr Line called(const char* file = __builtin_FILE(), int number = __builtin_LINE()) {
    return {file, number};
  }
};

// Where a thread of a kernel is.
struct Place {
  int thread, x, y, z;
  char* shared;
};

// The thread that runs, null outside of a launch. It is read everywhere, hence no calls to find it.
#if defined(__ELF__)
extern __thread const Place* here __attribute__((tls_model("initial-exec")));
#else
extern __thread const Place* here;
#endif

// Ends the launch: throws "thread 3 of block (0, 0, 0) <said> (<line>)", without a line if its file is null.
[[noreturn]] void fail(const std::string& said, Line line);

void block_barrier(Line line);

// What all lanes of a warp do together.
enum class Collective { warp_barrier, shuffle, load_matrices, multiply_half, multiply_bfloat16, load_left, load_right,
                        multiply_sums, store_sum };

struct Request {
  Collective kind;
  int variant;  // in which all lanes agree: sizes, transposition and orders of storage
  Line line;
  void* result;
  const void* left;
  const void* right;
  int number;  // the mask of a shuffle, or the distance of two rows
};

// Returns when all lanes have asked for the same and it is done.
void collective(const Request& request);

// copy_async and its like.
void start_copy(void* shared, const void* global, int bytes, Line line);
void commit_copies();
void await_copies(int pending);

// Calls kernel(argument) as every thread of every block.
void launch(Grid grid, int threads, int shared_bytes, void (*kernel)(void*), void* argument);

// Calls `kernel` as every thread of every block. Throws what a thread does wrong as std::runtime_error.
template <class F>
void run(Grid grid, int threads, int shared_bytes, F&& kernel) {
  auto call = [&kernel] { kernel(); };
  launch(grid, threads, shared_bytes, [](void* argument) { (*static_cast<decltype(call)*>(argument))(); }, &call);
}

}  // namespace emulation
}  // namespace lewel::cuda
