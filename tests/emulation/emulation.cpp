// Runs kernels on a CPU: block after block, every thread of a block a fiber with a stack of its own.
//
// A fiber runs until it waits for others, at a barrier or a collective of its warp, and the next of the block's order
// goes on; the last lane that comes to a collective does the work of the whole warp. The orders change at every barrier
// and collective, in a way that the block's index alone determines. A fiber that does something wrong throws; its
// block's other fibers are never resumed.
#include "fibers.h"  // the first

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "collectives.h"
#include "machine.h"

namespace lewel::cuda::emulation {

#if defined(__ELF__)
__thread const Place* here __attribute__((tls_model("initial-exec"))) = nullptr;
#else
__thread const Place* here = nullptr;
#endif

namespace {

int default_threads() {
  const int most = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 4);
  const char* told = std::getenv("OMP_NUM_THREADS");
  const int bound = told ? std::atoi(told) : 0;
  return bound > 0 ? std::min(most, bound) : most;
}

// ---- orders

constexpr int kMaxThreads = 1024, kMaxShared = 232448, kMaxYZ = 65535;

uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// Of lanes, or of warps: forwards, backwards, and shuffled ones.
struct Orders {
  static constexpr int kShuffled = 64;
  uint8_t forwards[kLanes], backwards[kLanes], shuffled[kShuffled][kLanes];

  Orders() {
    uint64_t state = 0;
    for (int i = 0; i < kLanes; ++i) {
      forwards[i] = static_cast<uint8_t>(i);
      backwards[i] = static_cast<uint8_t>(kLanes - 1 - i);
    }
    for (auto& order : shuffled) {
      std::copy(forwards, forwards + kLanes, order);
      for (int i = kLanes - 1; i > 0; --i) std::swap(order[i], order[next_random(state) % (i + 1)]);
    }
  }

  // Any three numbers in a row give one of each.
  const uint8_t* pick(uint64_t number, uint64_t random) const {
    return number % 3 == 0 ? forwards : number % 3 == 1 ? backwards : shuffled[random % kShuffled];
  }
};
const Orders orders;

// ---- what a block consists of

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

enum class State { runs, at_barrier, at_collective, returned };

class Machine;

struct Fiber {
  Place place;  // the first member: `here` points at it
  Machine* machine;
  State state;
  Line line;  // of the barrier at which it waits
  Context context;
  Stack stack;
  std::vector<Copy> copies;    // that have not arrived, the oldest first
  std::vector<size_t> groups;  // how many of them belong to each group; the rest belong to none yet
};

struct Warp {
  Fiber* lanes[kLanes];
  Lanes requests;        // of the lanes that have come to a collective
  int size, arrived, turn;
  const uint8_t* order;  // in which lanes run; those before `turn` have
  uint64_t number;       // of the orders taken
  int first;             // the lane that came to the collective first
};

std::string named(const Line& line) {
  if (!line.file) return "";
  const char* slash = std::strrchr(line.file, '/');
  return std::string(" (") + (slash ? slash + 1 : line.file) + ":" + std::to_string(line.number) + ")";
}

std::string named(const Place& p) {
  return "block (" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

std::string named(const Request& q) {
  static const char* const names[] = {"warp_barrier", "shuffle_xor", "load_matrices", "multiply_add of Half",
                                      "multiply_add of BFloat16", "load_left", "load_right", "multiply_add of Sum",
                                      "store_sum"};
  return names[static_cast<int>(q.kind)] + named(q.line);
}

[[noreturn]] void fail_at(const Place& place, const std::string& said) {
  throw std::runtime_error("thread " + std::to_string(place.thread) + " of " + named(place) + " " + said);
}

class Machine {
 public:
  // Before the blocks of a launch, in the thread that runs them.
  void prepare(int threads, int shared_bytes, void (*kernel)(void*), void* argument);
  void run_block(int x, int y, int z);

  // What fibers call.
  void barrier(Fiber& f, Line line);
  void collective(Fiber& f, const Request& request);
  void check_shared(const void* p, int64_t bytes, const char* what, Line line) const;

 private:
  static void enter();
  void run_fiber(Fiber& f);
  void restart(Warp& warp, uint64_t number);
  void restart_all();
  Fiber* next();
  void yield(Fiber& f);
  [[noreturn]] void report_stuck() const;

  static constexpr int kBeside = 4096;  // bytes of memory before and after the shared memory

  // Which are NaN of every type too, but not the NaN of which the shared memory is full.
  static std::string canary() {
    std::string bytes(kBeside, '\x7f');
    for (int i = 0; i < kBeside; i += 2) bytes[i] = '\xf5';
    return bytes;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  Warp warps_[kMaxThreads / kLanes];
  Context scheduler_;
  const std::string canary_ = canary();
  std::vector<char> memory_;
  char* shared_ = nullptr;
  int threads_ = 0, warp_count_ = 0, shared_bytes_ = 0;
  void (*kernel_)(void*) = nullptr;
  void* argument_ = nullptr;

  std::exception_ptr error_;
  int returned_ = 0, at_barrier_ = 0, turn_ = 0;
  Line barrier_{nullptr, 0};
  int first_ = 0;  // the thread that came to the barrier first
  const uint8_t* order_ = nullptr;
  uint64_t number_ = 0, random_ = 0;
};

Fiber& current() { return *reinterpret_cast<Fiber*>(const_cast<Place*>(here)); }

void Machine::prepare(int threads, int shared_bytes, void (*kernel)(void*), void* argument) {
  threads_ = threads;
  warp_count_ = (threads + kLanes - 1) / kLanes;
  shared_bytes_ = shared_bytes;
  kernel_ = kernel;
  argument_ = argument;
  while (static_cast<int>(fibers_.size()) < threads) {
    fibers_.push_back(std::make_unique<Fiber>());
    fibers_.back()->place.thread = static_cast<int>(fibers_.size()) - 1;
    fibers_.back()->machine = this;
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& f = *fibers_[i];
    f.context.prepare(f.stack.data(), Stack::bytes(i), enter);
    f.copies.clear();
    f.groups.clear();
    warps_[i / kLanes].lanes[i % kLanes] = &f;
  }
  for (int w = 0; w < warp_count_; ++w) warps_[w].size = std::min(kLanes, threads - w * kLanes);
  memory_.resize(2 * kBeside + shared_bytes + 256);
  shared_ = memory_.data() + kBeside;
  shared_ += (384 - reinterpret_cast<uintptr_t>(shared_) % 256) % 256;  // aligned to 128 bytes, and to no more
  for (int i = 0; i < threads; ++i) fibers_[i]->place.shared = shared_;
  for (char* beside : {shared_ - kBeside, shared_ + shared_bytes}) std::memcpy(beside, canary_.data(), kBeside);
  error_ = nullptr;
  scheduler_ = Context();
#if defined(__SANITIZE_ADDRESS__)
  for (int i = 0; i < threads; ++i) __asan_unpoison_memory_region(fibers_[i]->stack.data(), Stack::bytes(0));
#endif
}

void Machine::run_block(int x, int y, int z) {
  std::memset(shared_, 0xff, shared_bytes_);
  for (int i = 0; i < threads_; ++i) {
    Place& p = fibers_[i]->place;
    p.x = x;
    p.y = y;
    p.z = z;
  }
  random_ = (static_cast<uint64_t>(z) << 16 | static_cast<uint64_t>(y)) << 32 | static_cast<uint32_t>(x);
  number_ = next_random(random_);
  returned_ = 0;
  restart_all();
  Fiber* f = next();
  here = &f->place;
  switch_context(scheduler_, f->context);
  here = nullptr;
  if (error_) std::rethrow_exception(error_);
  for (const char* beside : {shared_ - kBeside, shared_ + shared_bytes_}) {
    if (std::memcmp(beside, canary_.data(), kBeside) == 0) continue;
    const auto wrong = std::mismatch(beside, beside + kBeside, canary_.data()).first - shared_;
    throw std::runtime_error("a thread of " + named(fibers_[0]->place) + " writes byte " + std::to_string(wrong) +
                             " of the shared memory, which has " + std::to_string(shared_bytes_) + " bytes");
  }
}

// A fiber lives as long as a launch, and calls the kernel once for every block.
void Machine::enter() {
#if defined(__SANITIZE_ADDRESS__)
  Context& scheduler = current().machine->scheduler_;
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (!scheduler.stack) {  // so it is the first fiber, and that was the scheduler's stack
    scheduler.stack = static_cast<char*>(const_cast<void*>(stack));
    scheduler.bytes = bytes;
  }
#endif
  for (;;) {
    Fiber& f = current();
    try {
      f.machine->run_fiber(f);
    } catch (...) {
      f.machine->error_ = std::current_exception();
    }
    // the last fiber of the block, or one that failed
    switch_context(f.context, f.machine->scheduler_);
  }
}

void Machine::run_fiber(Fiber& f) {
  for (;;) {
    kernel_(argument_);
    if (!f.copies.empty())
      fail_at(f.place, "returns before " + std::to_string(f.copies.size()) + " of its copies have arrived: "
                       "copy_async_wait has not been told to wait for them");
    f.groups.clear();
    f.state = State::returned;
    if (++returned_ == threads_) return;
    yield(f);
  }
}

void Machine::restart(Warp& warp, uint64_t number) {
  warp.number = number;
  warp.order = orders.pick(number, next_random(random_));
  warp.arrived = warp.turn = 0;
}

// All threads of the block may run.
void Machine::restart_all() {
  ++number_;
  order_ = orders.pick(number_, next_random(random_));
  turn_ = at_barrier_ = 0;
  for (int w = 0; w < warp_count_; ++w) restart(warps_[w], number_);
  for (int i = 0; i < threads_; ++i) fibers_[i]->state = State::runs;
}

// Whose turn it is, or null.
Fiber* Machine::next() {
  for (int i = 0; i < kLanes; ++i, turn_ = (turn_ + 1) % kLanes) {
    if (order_[turn_] >= warp_count_) continue;
    Warp& warp = warps_[order_[turn_]];
    while (warp.turn < kLanes)
      if (const int lane = warp.order[warp.turn++]; lane < warp.size) return warp.lanes[lane];
  }
  return nullptr;
}

// Lets the next fiber run. Returns when it is this one's turn again.
void Machine::yield(Fiber& f) {
  Fiber* other = next();
  if (!other) report_stuck();
  if (other == &f) return;
  here = &other->place;
  switch_context(f.context, other->context);
}

void Machine::barrier(Fiber& f, Line line) {
  if (at_barrier_ == 0) {
    barrier_ = line;
    first_ = f.place.thread;
  } else if (line.number != barrier_.number) {
    fail_at(f.place, "waits at block_barrier" + named(line) + ", but thread " + std::to_string(first_) +
                     " at another" + named(barrier_));
  }
  f.state = State::at_barrier;
  f.line = line;
  if (++at_barrier_ == threads_) restart_all();
  yield(f);
}

void Machine::collective(Fiber& f, const Request& request) {
  Warp& warp = warps_[f.place.thread / kLanes];
  const int lane = f.place.thread % kLanes;
  if (warp.arrived == 0) warp.first = lane;
  warp.requests[lane] = &request;
  f.state = State::at_collective;
  if (const Request& first = *warp.requests[warp.first]; !agree(first, request))
    fail_at(f.place, "calls " + named(request) + " while thread " +
                     std::to_string(warp.lanes[warp.first]->place.thread) + " of its warp calls " + named(first) +
                     " or the like with other arguments");
  if (++warp.arrived == kLanes) {
    perform(warp.requests);
    restart(warp, warp.number + 1);
    for (Fiber* each : warp.lanes) each->state = State::runs;
    // where warps are shuffled, another goes on now and then
    if (number_ % 3 == 2 && next_random(random_) % 2) turn_ = (turn_ + 1) % kLanes;
  }
  yield(f);
}

void Machine::report_stuck() const {
  const auto requested = [&](const Fiber& f) {
    return named(*warps_[f.place.thread / kLanes].requests[f.place.thread % kLanes]);
  };
  const auto say = [&](const Fiber& waits, const std::string& where, const Fiber& misses) {
    fail_at(waits.place, "waits at " + where + ", which thread " + std::to_string(misses.place.thread) +
                         " does not reach: it " +
                         (misses.state == State::returned     ? "has returned"
                          : misses.state == State::at_barrier ? "waits at block_barrier" + named(misses.line)
                                                              : "waits at " + requested(misses)));
  };
  for (int i = 0; i < threads_; ++i) {
    const Fiber& f = *fibers_[i];
    if (f.state != State::at_collective) continue;
    const Warp& warp = warps_[i / kLanes];
    for (int lane = 0; lane < warp.size; ++lane)
      if (warp.lanes[lane]->state != State::at_collective) say(f, requested(f), *warp.lanes[lane]);
    fail_at(f.place, "waits at " + requested(f) + " in a warp of " + std::to_string(warp.size) + " threads");
  }
  for (int i = 0; i < threads_; ++i)
    if (fibers_[i]->state == State::returned) say(*fibers_[first_], "block_barrier" + named(barrier_), *fibers_[i]);
  throw std::logic_error("the threads of " + named(fibers_[0]->place) + " wait for each other");
}

void Machine::check_shared(const void* p, int64_t bytes, const char* what, Line line) const {
  const auto offset = reinterpret_cast<intptr_t>(p) - reinterpret_cast<intptr_t>(shared_);
  if (offset < 0 || offset + bytes > shared_bytes_)
    fail(std::string(what) + " at byte " + std::to_string(offset) + " of the shared memory, which has " +
             std::to_string(shared_bytes_) + " bytes",
         line);
}

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// What one lane can get wrong alone.
void check(const Request& q) {
  const bool stores = q.kind == Collective::store_sum;
  switch (q.kind) {
    case Collective::shuffle:
      if (q.number < 0 || q.number >= kLanes) fail("shuffles by the mask " + std::to_string(q.number), q.line);
      return;
    case Collective::load_matrices:
      if (!aligned(q.left, 16)) fail("loads a row of a matrix that is not aligned to 16 bytes", q.line);
      return current().machine->check_shared(q.left, 16, "loads a row of a matrix", q.line);
    case Collective::load_left:
    case Collective::load_right:
    case Collective::store_sum: {
      const void* const p = stores ? q.result : q.left;
      const int multiple = stores ? 4 : 8, bytes = stores ? 4 : 2;
      if (!aligned(p, 32)) fail(named(q) + " has a matrix that is not aligned to 32 bytes", q.line);
      if (q.number <= 0 || q.number % multiple != 0)
        fail("has a matrix whose ld " + std::to_string(q.number) + " is no multiple of " + std::to_string(multiple),
             q.line);
      return current().machine->check_shared(p, (int64_t{kSide - 1} * q.number + kSide) * bytes,
                                             stores ? "stores a matrix" : "loads a matrix", q.line);
    }
    default: return;
  }
}

// ---- launches

// Machines are kept, and so are their stacks.
std::mutex pool_lock;
std::vector<std::unique_ptr<Machine>>& pool() {
  static auto* const machines = new std::vector<std::unique_ptr<Machine>>;  // never destroyed: kernels may run at exit
  return *machines;
}

std::unique_ptr<Machine> take_machine() {
  const std::lock_guard<std::mutex> held(pool_lock);
  if (pool().empty()) return std::make_unique<Machine>();
  auto taken = std::move(pool().back());
  pool().pop_back();
  return taken;
}

void give_machine(std::unique_ptr<Machine> given) {
  const std::lock_guard<std::mutex> held(pool_lock);
  pool().push_back(std::move(given));
}

}  // namespace

int threads = default_threads();

void fail(const std::string& said, Line line) {
  if (!here) throw std::runtime_error("the caller " + said + named(line));
  fail_at(*here, said + named(line));
}

void block_barrier(Line line) { current().machine->barrier(current(), line); }

void collective(const Request& request) {
  check(request);
  current().machine->collective(current(), request);
}

void start_copy(void* shared, const void* global, int bytes, Line line) {
  if (bytes < 0 || bytes > 16) fail("copies " + std::to_string(bytes) + " bytes, which is not in 0..16", line);
  if (!aligned(shared, 16)) fail("copies to an address that is not aligned to 16 bytes", line);
  if (!aligned(global, 16)) fail("copies from an address that is not aligned to 16 bytes", line);
  current().machine->check_shared(shared, 16, "copies to 16 bytes", line);
  std::memset(shared, 0xff, 16);
  current().copies.push_back({shared, global, bytes});
}

void commit_copies() {
  Fiber& f = current();
  size_t in_groups = 0;
  for (const size_t each : f.groups) in_groups += each;
  f.groups.push_back(f.copies.size() - in_groups);
}

void await_copies(int pending) {
  Fiber& f = current();
  if (f.groups.size() <= static_cast<size_t>(pending)) return;
  const auto last = f.groups.end() - pending;
  size_t arrive = 0;
  for (auto each = f.groups.begin(); each != last; ++each) arrive += *each;
  for (size_t i = 0; i < arrive; ++i) {
    const Copy& copy = f.copies[i];
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
  }
  f.copies.erase(f.copies.begin(), f.copies.begin() + arrive);
  f.groups.erase(f.groups.begin(), last);
}

void launch(Grid grid, int block_threads, int shared_bytes, void (*kernel)(void*), void* argument) {
  if (here) fail("launches a kernel", {nullptr, 0});
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > kMaxYZ || grid.z > kMaxYZ)
    throw std::runtime_error("a grid of (" + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ", " +
                             std::to_string(grid.z) + ") blocks cannot be launched");
  if (block_threads < 1 || block_threads > kMaxThreads)
    throw std::runtime_error("a block of " + std::to_string(block_threads) + " threads cannot be launched");
  if (shared_bytes < 0 || shared_bytes > kMaxShared)
    throw std::runtime_error(std::to_string(shared_bytes) + " bytes of shared memory are not to be had");

  // Backwards, so that a block that wants what an earlier one does shows. All blocks before one that fails are run, so
  // that which is reported does not depend on the threads.
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  std::atomic<int64_t> taken{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  std::exception_ptr error;
  int64_t error_at = blocks;
  const auto work = [&] {
    int64_t i = 0;
    try {
      auto own = take_machine();
      own->prepare(block_threads, shared_bytes, kernel, argument);
      while (!failed && (i = taken++) < blocks) {
        const int64_t block = blocks - 1 - i;
        own->run_block(static_cast<int>(block % grid.x), static_cast<int>(block / grid.x % grid.y),
                       static_cast<int>(block / grid.x / grid.y));
      }
      give_machine(std::move(own));
    } catch (...) {
      failed = true;
      const std::lock_guard<std::mutex> held(lock);
      if (i < error_at) {
        error_at = i;
        error = std::current_exception();
      }
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min<int64_t>(threads, blocks); ++i) others.emplace_back(work);
  } catch (const std::exception&) {
    // with as many as there are: one that is dropped unjoined ends the process
  }
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace lewel::cuda::emulation
