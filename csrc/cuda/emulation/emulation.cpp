// Runs kernels on a CPU: block after block, every thread of a block a fiber with a stack of its own.
//
// A fiber runs until it waits for others, at a barrier or a collective of its warp, and the next of the block's order
// goes on; the last lane that comes to a collective does the work of the whole warp. The orders change at every barrier
// and collective, in a way that the block's index alone determines. A fiber that does something wrong throws; its
// block's other fibers are never resumed.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "machine.h"

#if !defined(__x86_64__) || !defined(__ELF__) || defined(LEWEL_EMULATION_PORTABLE)
#undef _FORTIFY_SOURCE  // its longjmp takes another stack for an error
#include <setjmp.h>
#include <ucontext.h>
#define LEWEL_UCONTEXT
#endif

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

// ---- contexts: what is saved of a fiber while another runs

using Entry = void (*)();

#if defined(LEWEL_UCONTEXT)

// ucontext makes a context, with a system call; setjmp and longjmp switch without one.
struct Context {
  ucontext_t made;
  jmp_buf saved;
  bool fresh = false;

  void prepare(char* stack, size_t bytes, Entry entry) {
    getcontext(&made);
    made.uc_stack.ss_sp = stack;
    made.uc_stack.ss_size = bytes;
    made.uc_link = nullptr;
    makecontext(&made, entry, 0);
    fresh = true;
  }
};

__attribute__((noinline)) void switch_context(Context& from, Context& to) {
  if (_setjmp(from.saved) != 0) return;
  if (!to.fresh) _longjmp(to.saved, 1);
  to.fresh = false;
  setcontext(&to.made);
}

#else

extern "C" void lewel_emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));

// The registers that a call preserves, pushed on the stack of the one and popped from that of the other.
asm(R"(
.pushsection .text
.hidden lewel_emulation_switch
.globl lewel_emulation_switch
.type lewel_emulation_switch, @function
.p2align 4
lewel_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lewel_emulation_switch, . - lewel_emulation_switch
.popsection
)");

struct Context {
  void* top = nullptr;

  void prepare(char* stack, size_t bytes, Entry entry) {
    void** words = reinterpret_cast<void**>(stack + bytes / 16 * 16) - 8;
    std::fill(words, words + 8, nullptr);
    words[6] = reinterpret_cast<void*>(entry);  // after the six registers; and its own caller, null, ends backtraces
    top = words;
  }
};

inline void switch_context(Context& from, Context& to) { lewel_emulation_switch(&from.top, to.top); }

#endif

// A stack, with a page below it that nobody may touch.
class Stack {
 public:
  Stack() {
    base_ = static_cast<char*>(mmap(nullptr, kGuard + kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    if (mprotect(base_ + kGuard, kBytes, PROT_READ | PROT_WRITE) != 0) {
      munmap(base_, kGuard + kBytes);
      throw std::bad_alloc();
    }
  }
  ~Stack() { munmap(base_, kGuard + kBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Stacks of equal alignment would fight for the same lines of the caches.
  char* data() const { return base_ + kGuard; }
  static size_t bytes(int thread) { return kBytes - static_cast<size_t>(thread) % 61 * 320; }

 private:
  static constexpr size_t kGuard = 65536, kBytes = 262144;  // whole pages, where a page has 64 KiB too
  char* base_;
};

// ---- orders

constexpr int kLanes = 32, kMaxThreads = 1024, kMaxShared = 232448, kMaxYZ = 65535;

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
  Line line;  // of what it waits for
  Request request;
  Context context;
  Stack stack;
  std::vector<Copy> copies;    // that have not arrived, the oldest first
  std::vector<size_t> groups;  // how many of them belong to each group; the rest belong to none yet
};

struct Warp {
  Fiber* lanes[kLanes];
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
  static const char* const names[] = {"warp_barrier",          "shuffle_xor", "load_matrices",
                                      "multiply_add of Half",  "multiply_add of BFloat16",
                                      "load_left",             "load_right",  "multiply_add of Sum",
                                      "store_sum"};
  return names[static_cast<int>(q.kind)] + named(q.line);
}

[[noreturn]] void fail_at(const Place& place, const std::string& said) {
  throw std::runtime_error("thread " + std::to_string(place.thread) + " of " + named(place) + " " + said);
}

// Whether two lanes ask for the same.
bool agree(const Request& p, const Request& q) {
  if (p.kind != q.kind || p.variant != q.variant || p.line.number != q.line.number) return false;
  switch (p.kind) {
    case Collective::load_left:
    case Collective::load_right: return p.left == q.left && p.number == q.number;
    case Collective::store_sum: return p.result == q.result && p.number == q.number;
    default: return true;
  }
}

void perform(Warp& warp);

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
  if (warp.arrived == 0) warp.first = f.place.thread % kLanes;
  const Fiber& first = *warp.lanes[warp.first];
  f.request = request;
  f.state = State::at_collective;
  if (const Request& q = first.request; !agree(q, request))
    fail_at(f.place, "calls " + named(request) + " while thread " + std::to_string(first.place.thread) +
                     " of its warp calls " + named(q) + " or the like with other arguments");
  if (++warp.arrived == kLanes) {
    perform(warp);
    restart(warp, warp.number + 1);
    for (Fiber* each : warp.lanes) each->state = State::runs;
    // where warps are shuffled, another goes on now and then
    if (number_ % 3 == 2 && next_random(random_) % 2) turn_ = (turn_ + 1) % kLanes;
  }
  yield(f);
}

void Machine::report_stuck() const {
  const auto say = [&](const Fiber& waits, const std::string& where, const Fiber& misses) {
    fail_at(waits.place, "waits at " + where + ", which thread " + std::to_string(misses.place.thread) +
                         " does not reach: it " +
                         (misses.state == State::returned     ? "has returned"
                          : misses.state == State::at_barrier ? "waits at block_barrier" + named(misses.line)
                                                              : "waits at " + named(misses.request)));
  };
  for (int i = 0; i < threads_; ++i) {
    const Fiber& f = *fibers_[i];
    if (f.state != State::at_collective) continue;
    const Warp& warp = warps_[i / kLanes];
    for (int lane = 0; lane < warp.size; ++lane)
      if (warp.lanes[lane]->state != State::at_collective) say(f, named(f.request), *warp.lanes[lane]);
    fail_at(f.place, "waits at " + named(f.request) + " in a warp of " + std::to_string(warp.size) + " threads");
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

// ---- collectives

constexpr int kSide = 16;  // of the matrices

typedef float Row __attribute__((vector_size(8 * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(8 * sizeof(uint32_t))));
typedef uint16_t Numbers __attribute__((vector_size(8 * sizeof(uint16_t))));

// Eight numbers as floats.
void widen_row(float* to, const void* from, bool half) {
  Numbers numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  Words u = __builtin_convertvector(numbers, Words);
  if (half) {
    // Subnormals, which begin at 2^-14 here, are mended by a subtraction: no float on the way is subnormal.
    const Words sign = (u & 0x8000) << 16, magnitude = (u & 0x7fff) << 13;
    const Words small = reinterpret_cast<Words>(magnitude < (0x400u << 13));
    const Words large = reinterpret_cast<Words>(magnitude >= (0x7c00u << 13));
    const Words shifted = magnitude + (112u << 23) + (large & (112u << 23)) + (small & (1u << 23));
    Row row;
    std::memcpy(&row, &shifted, sizeof row);
    row -= 0x1p-14f;
    Words mended;
    std::memcpy(&mended, &row, sizeof mended);
    u = sign | (small & mended) | (~small & shifted);
  } else {
    u <<= 16;
  }
  std::memcpy(to, &u, sizeof u);
}

// d (16 x 8) += a (16 x 16) b (16 x 8), in the order of the columns of a; rows of b and d are `width` apart.
void multiply(float* d, const float (&a)[kSide][kSide], const float* b, int width) {
  Row rows[kSide];
  for (int k = 0; k < kSide; ++k) std::memcpy(&rows[k], b + k * width, sizeof(Row));
  for (int i = 0; i < kSide; ++i) {
    Row sum;
    std::memcpy(&sum, d + i * width, sizeof sum);
    for (int k = 0; k < kSide; ++k) sum += a[i][k] * rows[k];
    std::memcpy(d + i * width, &sum, sizeof sum);
  }
}

void shuffle(Warp& warp) {
  const int bytes = warp.lanes[0]->request.variant;
  char values[kLanes][8];
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(values[lane], warp.lanes[lane]->request.left, bytes);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& q = warp.lanes[lane]->request;
    std::memcpy(q.result, values[lane ^ q.number], bytes);
  }
}

// ldmatrix.m8n8.x4.b16: the row of matrix j that starts at lane 8 j + i's address, and of each row a word to four lanes.
void load_matrices(Warp& warp) {
  const bool transposed = warp.lanes[0]->request.variant != 0;
  for (int j = 0; j < 4; ++j) {
    uint16_t matrix[8][8];
    for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], warp.lanes[8 * j + i]->request.left, sizeof matrix[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t lower = transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t upper = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      static_cast<uint32_t*>(warp.lanes[lane]->request.result)[j] = lower | upper << 16;
    }
  }
}

// mma.m16n8k16, whose words are pairs of neighbours in a row of a, in a column of b and in a row of d. PTX calls lane / 4
// the group and lane % 4 the member.
void multiply_fragments(Warp& warp, bool half) {
  uint32_t left[kSide][8], right[8][8];  // right holds the columns of b
  float a[kSide][kSide], columns[8][kSide], b[kSide][8], d[kSide][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& q = warp.lanes[lane]->request;
    const int group = lane / 4, member = lane % 4;
    uint32_t x[4], y[2];
    std::memcpy(x, q.left, sizeof x);
    std::memcpy(y, q.right, sizeof y);
    left[group][member] = x[0];
    left[group + 8][member] = x[1];
    left[group][member + 4] = x[2];
    left[group + 8][member + 4] = x[3];
    right[group][member] = y[0];
    right[group][member + 4] = y[1];
    std::memcpy(&d[group][2 * member], q.result, 2 * sizeof(float));
    std::memcpy(&d[group + 8][2 * member], static_cast<float*>(q.result) + 2, 2 * sizeof(float));
  }
  for (int i = 0; i < kSide; ++i)
    for (int word = 0; word < 8; word += 4) widen_row(&a[i][2 * word], &left[i][word], half);
  for (int j = 0; j < 8; ++j) {
    for (int word = 0; word < 8; word += 4) widen_row(&columns[j][2 * word], &right[j][word], half);
    for (int k = 0; k < kSide; ++k) b[k][j] = columns[j][k];
  }
  multiply(&d[0][0], a, &b[0][0], 8);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const sums = static_cast<float*>(warp.lanes[lane]->request.result);
    std::memcpy(sums, &d[lane / 4][lane % 4 * 2], 2 * sizeof(float));
    std::memcpy(sums + 2, &d[lane / 4 + 8][lane % 4 * 2], 2 * sizeof(float));
  }
}

// WMMA. A lane holds eight numbers of an operand, strewn over the matrix, each with a tag of how it was loaded in the
// upper half of its word, so that what was not loaded, or loaded otherwise, shows.
constexpr uint32_t kTag = 0xa5c0;
constexpr uint32_t tag(bool right, bool columns) { return kTag | static_cast<uint32_t>(right) << 1 | columns; }

// Calls f(lane, word, i, j) for every number (i, j) of a matrix and the place where it is held.
template <class F>
inline void for_each_held(F&& f) {
  for (unsigned at = 0; at < kSide * kSide; ++at) {
    const unsigned number = (at * 167 + 59) % (kSide * kSide);
    f(at / 8, at % 8, number / kSide, number % kSide);
  }
}

void load_operand(Warp& warp, bool right) {
  const Request& q = warp.lanes[0]->request;
  const bool columns = q.variant != 0;
  uint16_t numbers[kSide][kSide];  // [j][i] if by columns
  for (int i = 0; i < kSide; ++i)
    std::memcpy(numbers[i], static_cast<const char*>(q.left) + int64_t{2} * i * q.number, sizeof numbers[i]);
  const uint32_t tagged = tag(right, columns) << 16;
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    static_cast<uint32_t*>(warp.lanes[lane]->request.result)[word] = tagged | (columns ? numbers[j][i] : numbers[i][j]);
  });
}

void read_operand(float (&to)[kSide][kSide], const Warp& warp, bool right) {
  const uint32_t expected = tag(right, warp.lanes[0]->request.variant >> right & 1);
  uint16_t numbers[kSide][kSide];
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    const Request& q = warp.lanes[lane]->request;
    const uint32_t held = static_cast<const uint32_t*>(right ? q.right : q.left)[word];
    if (held >> 16 != expected)
      fail_at(warp.lanes[lane]->place, "calls " + named(q) + " with a " + (right ? "right" : "left") +
                                       " operand that was not loaded as such, in this order of storage");
    numbers[i][j] = static_cast<uint16_t>(held);
  });
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; j += 8) widen_row(&to[i][j], &numbers[i][j], true);
}

void multiply_sums(Warp& warp) {
  float a[kSide][kSide], b[kSide][kSide], d[kSide][kSide];
  read_operand(a, warp, false);
  read_operand(b, warp, true);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    d[i][j] = static_cast<const float*>(warp.lanes[lane]->request.result)[word];
  });
  for (int j = 0; j < kSide; j += 8) multiply(&d[0][j], a, &b[0][j], kSide);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    static_cast<float*>(warp.lanes[lane]->request.result)[word] = d[i][j];
  });
}

void store_sum(Warp& warp) {
  const Request& q = warp.lanes[0]->request;
  float* const p = static_cast<float*>(q.result);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    p[int64_t{i} * q.number + j] = static_cast<const float*>(warp.lanes[lane]->request.left)[word];
  });
}

void perform(Warp& warp) {
  switch (warp.lanes[0]->request.kind) {
    case Collective::warp_barrier: return;
    case Collective::shuffle: return shuffle(warp);
    case Collective::load_matrices: return load_matrices(warp);
    case Collective::multiply_half: return multiply_fragments(warp, true);
    case Collective::multiply_bfloat16: return multiply_fragments(warp, false);
    case Collective::load_left: return load_operand(warp, false);
    case Collective::load_right: return load_operand(warp, true);
    case Collective::multiply_sums: return multiply_sums(warp);
    case Collective::store_sum: return store_sum(warp);
  }
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
      current().machine->check_shared(p, (int64_t{kSide - 1} * q.number + kSide) * bytes,
                            stores ? "stores a matrix" : "loads a matrix", q.line);
      return;
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
  for (int64_t i = 1; i < std::min<int64_t>(threads, blocks); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace lewel::cuda::emulation
