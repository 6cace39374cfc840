// What tests/emulation promises, one check per name: `program NAME` runs one, `program` lists them.
// tests/test_cuda_emulation.py compiles this for both kArch and runs it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device.h"
#include "cuda_checks.h"

using namespace lewel::cuda;

namespace {

using Kernel = void (*)();

void run_one(Kernel kernel, int threads = 32, int shared_bytes = 1024) {
  emulation::run({1, 1, 1}, threads, shared_bytes, kernel);
}

// That a launch ends with an error which has all these words, and that the next launch is none the worse for it.
void expect_error(Kernel kernel, std::initializer_list<std::string> words, int threads = 32, int shared_bytes = 1024) {
  std::string said;
  try {
    run_one(kernel, threads, shared_bytes);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  if (said.empty()) failed(__LINE__, "the launch did not end with an error");
  for (const std::string& word : words)
    if (said.find(word) == std::string::npos) failed(__LINE__, "\"" + said + "\" does not say \"" + word + "\"");
  int ran = 0;
  emulation::run({1, 1, 1}, threads, shared_bytes, [&] {
    block_barrier();
    ++ran;
    block_barrier();
  });
  CHECK(ran == threads, "the launch after the error ran " + std::to_string(ran) + " threads");
}

// Small, and without a pattern.
int number(int i, int j) { return (i * 37 + j * 101 + i * j * 13) % 17 - 8; }

// ---- numbers

bool same(double x, double y) {
  return std::isnan(x) ? std::isnan(y) : x == y && std::signbit(x) == std::signbit(y);
}

// The value of 16 bits with so many bits of mantissa.
double value_of(int bits, int mantissa_bits) {
  const int exponent_bits = 15 - mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return exponent ? sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)
                  : sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
}

template <class T>
void check_widen(int mantissa_bits) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float x = widen<float>(T{static_cast<unsigned short>(bits)});
    CHECK(same(x, value_of(bits, mantissa_bits)), std::to_string(bits) + " becomes " + std::to_string(x));
  }
}

template <class T>
void check_rounded(int mantissa_bits) {
  const auto check = [&](float x, int bits) {
    const int got = rounded<T>(x).bits;
    const bool right = std::isnan(x) ? std::isnan(value_of(got, mantissa_bits)) : got == bits;
    CHECK(right, std::to_string(x) + " becomes " + std::to_string(got) + " instead of " + std::to_string(bits));
  };
  const int infinity = 0x7fff >> mantissa_bits << mantissa_bits;
  for (const int sign : {0, 0x8000}) {
    for (int bits = 0; bits < 0x8000; ++bits)
      check(static_cast<float>(value_of(sign | bits, mantissa_bits)), sign | bits);
    // Between neighbours, where the one above the greatest is where the exponents would go on.
    for (int bits = 0; bits < infinity; ++bits) {
      const double low = value_of(bits, mantissa_bits);
      const double high = bits + 1 < infinity ? value_of(bits + 1, mantissa_bits)
                                              : 2 * low - value_of(bits - 1, mantissa_bits);
      const float middle = static_cast<float>((low + high) / 2), end = std::numeric_limits<float>::infinity();
      const float flip = sign ? -1.0f : 1.0f;
      check(flip * middle, sign | (bits + bits % 2));
      check(flip * std::nextafterf(middle, 0), sign | bits);
      check(flip * std::nextafterf(middle, end), sign | (bits + 1));
    }
    check(std::copysign(std::numeric_limits<float>::max(), sign ? -1.0f : 1.0f), sign | infinity);
    check(std::copysign(std::numeric_limits<float>::denorm_min(), sign ? -1.0f : 1.0f), sign);
  }
  // NaN whose mantissa is only in the bits that are cut off, or would be carried over into the sign
  for (const uint32 bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) check(emulation::float_of(bits), 0);
}

CHECKED(half_to_float) { check_widen<Half>(10); }
CHECKED(float_to_half) { check_rounded<Half>(10); }
CHECKED(bfloat16_to_float) { check_widen<BFloat16>(7); }

CHECKED(other_numbers) {
  CHECK(widen<double>(3.5) == 3.5 && widen<float>(0.1f) == 0.1f, "widen changes a number");
  CHECK(rounded<double>(0.1) == 0.1 && rounded<float>(0.1f) == 0.1f, "rounded changes a number");
  CHECK(power_of_two(-3.0f) == 0.125f && power_of_two(0.5) == std::sqrt(2.0), "power_of_two is wrong");
  CHECK(infinity() == std::numeric_limits<float>::infinity() && opaque(7) == 7, "infinity or opaque is wrong");
  CHECK(square_root(2.25f) == 1.5f && square_root(2.0) == std::sqrt(2.0), "square_root is wrong");
}

// ---- launches

CHECKED(places) {
  std::vector<int> seen(2 * 3 * 4 * 70);
  emulation::run({2, 3, 4}, 70, 0, [&] {
    if (lane() == thread() % 32 && warp() == thread() / 32)
      ++seen[((block_z() * 3 + block_y()) * 2 + block_x()) * 70 + thread()];
  });
  CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "a thread did not run once in its place");
}

CHECKED(shared_memory_is_nan_and_aligned) {
  bool nan = true, aligned = true, apart = true;
  emulation::run({5, 1, 1}, 1, 4096, [&] {
    aligned &= reinterpret_cast<std::uintptr_t>(shared_memory()) % 128 == 0;
    for (int i = 0; i < 4096; ++i) {
      nan &= static_cast<unsigned char>(shared_memory()[i]) == 0xff;
      shared_memory()[i] = 0;
    }
    apart &= std::isnan(*reinterpret_cast<float*>(shared_memory() + 4096));
  });
  CHECK(nan, "a block found something else than 0xff");
  CHECK(aligned, "the shared memory is not aligned to 128 bytes");
  CHECK(apart, "what lies behind the shared memory is not NaN");
}

CHECKED(local_arrays) {
  int wrong = 0;
  emulation::run({1, 1, 1}, 64, 0, [&] {
    volatile int local[8192];
    for (int i = 0; i < 8192; ++i) local[i] = i + thread();
    block_barrier();
    for (int i = 0; i < 8192; ++i) wrong += local[i] != i + thread();
  });
  CHECK(wrong == 0, "a thread's array of 32 KiB was changed by another thread");
}

CHECKED(floating_point_registers) {
  // more numbers than there are registers which calls preserve
  float sums[64];
  emulation::run({1, 1, 1}, 64, 0, [&] {
    float x[24];
    for (int i = 0; i < 24; ++i) x[i] = static_cast<float>(thread() * 24 + i);
    for (int n = 0; n < 3; ++n) {
      block_barrier();
      for (float& each : x) each += 1;
    }
    sums[thread()] = 0;
    for (const float each : x) sums[thread()] += each;
  });
  for (int i = 0; i < 64; ++i) CHECK(sums[i] == 24 * 24 * i + 276 + 72, "a thread's numbers do not survive barriers");
}

// The threads of a block in the order in which they run, phase by phase.
std::vector<std::vector<int>> order_of(int block, int phases, int threads = 128) {
  std::vector<std::vector<int>> order(phases);
  emulation::run({block + 1, 1, 1}, threads, 0, [&] {
    for (int phase = 0; phase < phases; ++phase) {
      if (block_x() == block) order[phase].push_back(thread());
      block_barrier();
    }
  });
  return order;
}

CHECKED(orders_change_at_barriers) {
  const auto order = order_of(0, 12);
  int forwards = 0, backwards = 0, shuffled_warps = 0;
  for (size_t phase = 0; phase < order.size(); ++phase) {
    const auto& now = order[phase];
    CHECK(now.size() == 128, "not all threads ran between two barriers");
    if (phase > 0) CHECK(now != order[phase - 1], "the order was the same before and after a barrier");
    forwards += std::is_sorted(now.begin(), now.end());
    backwards += std::is_sorted(now.rbegin(), now.rend());
    bool rising = true, falling = true;
    for (int i = 32; i < 128; i += 32) (now[i - 32] / 32 < now[i] / 32 ? falling : rising) = false;
    shuffled_warps += !rising && !falling;
  }
  CHECK(forwards == 4 && backwards == 4, "of twelve orders, four are not forwards and four not backwards");
  CHECK(shuffled_warps > 0, "warps are never shuffled");
}

CHECKED(orders_are_deterministic) {
  const auto order = order_of(3, 12);
  CHECK(order == order_of(3, 12), "the same launch had another order");
  CHECK(order != order_of(2, 12), "two blocks have the same orders");
  const int before = emulation::threads;
  for (const int threads : {1, 3}) {
    emulation::threads = threads;
    CHECK(order == order_of(3, 12), "the order depends on how many threads run blocks");
  }
  emulation::threads = before;
}

CHECKED(orders_change_at_collectives) {
  std::vector<int> orders[6];
  emulation::run({1, 1, 1}, 32, 0, [&] {
    for (auto& order : orders) {
      order.push_back(lane());
      warp_barrier();
    }
  });
  int forwards = 0, backwards = 0;
  for (int i = 0; i < 6; ++i) {
    if (i > 0) CHECK(orders[i] != orders[i - 1], "the order was the same before and after a warp barrier");
    forwards += std::is_sorted(orders[i].begin(), orders[i].end());
    backwards += std::is_sorted(orders[i].rbegin(), orders[i].rend());
  }
  CHECK(forwards == 2 && backwards == 2, "of six orders, two are not forwards and two not backwards");
}

// Whether a block of `threads` gets its neighbours' numbers right, in each of these directions and three phases.
template <class Barrier>
bool neighbours_see(int threads, int step, Barrier&& barrier) {
  bool right = true;
  emulation::run({1, 1, 1}, threads, 1024, [&] {
    int* const numbers = reinterpret_cast<int*>(shared_memory());
    for (int phase = 0; phase < 3; ++phase) {
      numbers[thread()] = 1000 * phase + thread();
      barrier();
      const int other = (thread() + step + threads) % threads;
      right &= numbers[other] == 1000 * phase + other;
      block_barrier();
    }
  });
  return right;
}

CHECKED(missing_barriers_show) {
  for (const int step : {-32, -1, 1, 32}) {
    CHECK(neighbours_see(128, step, [] { block_barrier(); }), "a barrier did not help");
    CHECK(!neighbours_see(128, step, [] {}), "a missing barrier did not show");
  }
  CHECK(!neighbours_see(128, 32, [] { warp_barrier(); }), "a warp barrier did for a barrier");
  for (const int step : {-1, 1}) {
    CHECK(neighbours_see(32, step, [] { warp_barrier(); }), "a warp barrier did not help");
    CHECK(!neighbours_see(32, step, [] {}), "a missing warp barrier did not show");
  }
}

CHECKED(blocks_run_backwards) {
  const int before = emulation::threads;
  emulation::threads = 1;
  std::vector<int> order;
  emulation::run({3, 2, 1}, 1, 0, [&] { order.push_back(block_y() * 3 + block_x()); });
  emulation::threads = before;
  CHECK((order == std::vector<int>{5, 4, 3, 2, 1, 0}), "blocks ran in another order");
}

CHECKED(exceptions_pass) {
  for (int i = 0; i < 3; ++i) {
    int caught = 0;
    try {
      emulation::run({1, 1, 1}, 64, 0, [&] {
        block_barrier();
        if (thread() == 5) throw 17;
        block_barrier();
      });
    } catch (int thrown) {
      caught = thrown;
    }
    CHECK(caught == 17, "what a thread throws does not arrive");
  }
}

CHECKED(first_error_is_reported) {
  const int before = emulation::threads;
  emulation::threads = 2;
  for (const int late : {0, 1}) {  // the block that fails last; block 1 is the first to run
    std::atomic<int> begun{0};
    std::string said;
    try {
      emulation::run({2, 1, 1}, 2, 0, [&] {
        if (thread() == 1) return;
        ++begun;
        while (begun < 2) std::this_thread::yield();
        if (block_x() == late) std::this_thread::sleep_for(std::chrono::milliseconds(20));
        block_barrier();
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    CHECK(said.find("block (1, 0, 0)") != std::string::npos, "another block than the first is blamed: " + said);
  }
  emulation::threads = before;
}

CHECKED(launches_that_cannot_be) {
  const auto refused = [](Grid grid, int threads, int shared_bytes) {
    try {
      emulation::run(grid, threads, shared_bytes, [] {});
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  CHECK(refused({0, 1, 1}, 32, 0) && refused({1, 0, 1}, 32, 0) && refused({1, 1, 0}, 32, 0), "an empty grid ran");
  CHECK(refused({1, 65536, 1}, 32, 0) && refused({1, 1, 65536}, 32, 0), "a grid that is too high ran");
  CHECK(refused({1, 1, 1}, 0, 0) && refused({1, 1, 1}, 1025, 0), "a block of 0 or 1025 threads ran");
  CHECK(refused({1, 1, 1}, 32, -1) && refused({1, 1, 1}, 32, 1 << 20), "a block with 1 MiB of shared memory ran");
  CHECK(!refused({1, 1, 1}, 1024, 232448), "the greatest block did not run");
}

// ---- barriers and shuffles

CHECKED(shuffle) {
  for (const int mask : {0, 1, 2, 5, 16, 31}) {
    bool right = true;
    emulation::run({1, 1, 1}, 64, 0, [&] {
      const int other = thread() ^ mask;
      right &= shuffle_xor(static_cast<float>(thread()), mask) == static_cast<float>(other);
      right &= shuffle_xor(thread() + 0x1p-40, mask) == other + 0x1p-40;
    });
    CHECK(right, "a lane did not get the number of lane ^ " + std::to_string(mask));
  }
}

CHECKED(shuffle_by_too_much) { expect_error([] { shuffle_xor(1.0f, 32); }, {"thread", "32"}); }

CHECKED(barrier_missed_by_return) {
  expect_error(
      [] {
        if (thread() != 17) block_barrier();
      },
      {"block_barrier", "thread 17", "has returned", "block (0, 0, 0)"}, 64);
}

CHECKED(barrier_missed_at_collective) {
  expect_error(
      [] {
        if (thread() == 40) warp_barrier();
        block_barrier();
      },
      {"thread 40", "warp_barrier", "thread 32", "waits at block_barrier"}, 64);
}

CHECKED(barriers_of_two_lines) {
  expect_error(
      [] {
        if (warp() == 0)
          block_barrier();
        else
          block_barrier();
      },
      {"block_barrier", "at another"}, 64);
}

CHECKED(collective_missed_by_return) {
  expect_error(
      [] {
        if (thread() != 33) shuffle_xor(1.0f, 1);
      },
      {"thread 32", "shuffle_xor", "thread 33", "has returned"}, 64);
}

CHECKED(collective_in_part_of_a_warp) {
  expect_error([] { warp_barrier(); }, {"thread 32", "warp_barrier", "warp of 16 threads"}, 48);
}

CHECKED(different_collectives) {
  expect_error(
      [] {
        if (lane() < 16)
          warp_barrier();
        else
          shuffle_xor(1.0f, 1);
      },
      {"warp_barrier", "shuffle_xor", "thread"});
}

CHECKED(collectives_of_two_lines) {
  expect_error(
      [] {
        if (lane() < 16)
          shuffle_xor(1.0f, 1);
        else
          shuffle_xor(1.0f, 1);
      },
      {"shuffle_xor", "thread"});
}

CHECKED(writes_behind_shared_memory) {
  expect_error([] { shared_memory()[1000] = 0; }, {"block (0, 0, 0)", "byte 1000"}, 1, 1000);
  expect_error([] { shared_memory()[1000 + 4000] = 0; }, {"block (0, 0, 0)", "byte 5000"}, 1, 1000);
  run_one([] { shared_memory()[999] = 0; }, 1, 1000);
}

CHECKED(writes_before_shared_memory) {
  expect_error([] { shared_memory()[-1] = 0; }, {"block (0, 0, 0)", "byte -1 "}, 1, 1000);
  run_one([] { shared_memory()[0] = 0; }, 1, 1000);
}

#if LEWEL_EMULATED == 80

CHECKED(float_to_bfloat16) { check_rounded<BFloat16>(7); }

// ---- copies

alignas(16) const char kLetters[65] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-";

std::string shared_text(int at, int bytes) { return std::string(shared_memory() + at, bytes); }
const std::string kNothing(16, '\xff');

CHECKED(copies_arrive_when_waited_for) {
  run_one([] {
    shared_memory()[3] = 0;
    copy_async(shared_memory(), kLetters, 16);
    CHECK(shared_text(0, 16) == kNothing, "a copy does not hide what was there");
    copy_async_commit();
    copy_async(shared_memory() + 16, kLetters + 16, 16);
    copy_async_commit();
    copy_async_commit();
    copy_async(shared_memory() + 32, kLetters + 32, 16);
    copy_async_wait<3>();
    CHECK(shared_text(0, 16) == kNothing, "a copy arrived in the third last group");
    copy_async_wait<2>();
    CHECK(shared_text(0, 16) == std::string(kLetters, 16), "a copy did not arrive");
    CHECK(shared_text(16, 16) == kNothing, "a copy arrived in the second last group");
    copy_async_wait<1>();
    CHECK(shared_text(16, 16) == std::string(kLetters + 16, 16), "a copy did not arrive");
    copy_async_wait<0>();
    CHECK(shared_text(32, 16) == kNothing, "a copy arrived that is in no group");
    copy_async_commit();
    copy_async_wait<0>();
    CHECK(shared_text(32, 16) == std::string(kLetters + 32, 16), "a copy did not arrive");
    CHECK(shared_text(48, 16) == kNothing, "a copy has more than 16 bytes");
  }, 1);
}

CHECKED(copies_read_late) {
  alignas(16) char from[16] = {};
  emulation::run({1, 1, 1}, 1, 16, [&] {
    copy_async(shared_memory(), from, 16);
    copy_async_commit();
    from[0] = 'x';
    copy_async_wait<0>();
    CHECK(shared_memory()[0] == 'x', "a copy read its source before it was waited for");
  });
}

CHECKED(copies_of_other_threads) {
  run_one([] {
    copy_async(shared_memory() + 16 * thread(), kLetters, 16);
    copy_async_commit();
    if (thread() == 0) copy_async_wait<0>();
    block_barrier();
    CHECK(shared_text(0, 16) == std::string(kLetters, 16), "a copy did not arrive");
    CHECK(shared_text(16, 16) == kNothing, "a copy arrived because another thread waited");
    block_barrier();
    copy_async_wait<0>();
  }, 2);
}

CHECKED(copies_fill_with_zeros) {
  run_one([] {
    for (int bytes = 0; bytes <= 16; ++bytes) {
      copy_async(shared_memory(), bytes ? kLetters : nullptr, bytes);
      copy_async_commit();
      copy_async_wait<0>();
      CHECK(shared_text(0, 16) == std::string(kLetters, bytes) + std::string(16 - bytes, '\0'), "a copy went wrong");
    }
  }, 1);
}

CHECKED(copy_to_odd_address) {
  expect_error([] { copy_async(shared_memory() + 8, kLetters, 16); }, {"thread 0", "copies to", "16 bytes"}, 1);
}
CHECKED(copy_from_odd_address) {
  expect_error([] { copy_async(shared_memory(), kLetters + 8, 8); }, {"thread 0", "copies from", "16 bytes"}, 1);
}
CHECKED(copy_of_odd_size) {
  expect_error([] { copy_async(shared_memory(), kLetters, 17); }, {"thread 0", "copies 17 bytes"}, 1);
  expect_error([] { copy_async(shared_memory(), kLetters, -1); }, {"thread 0", "copies -1 bytes"}, 1);
}
CHECKED(copy_outside_shared_memory) {
  expect_error([] { copy_async(shared_memory() + 1024, kLetters, 0); }, {"thread 0", "byte 1024"}, 1);
  expect_error([] { copy_async(shared_memory() - 16, kLetters, 0); }, {"thread 0", "byte -16"}, 1);
}
CHECKED(copy_never_waited_for) {
  expect_error([] { copy_async(shared_memory(), kLetters, 16); }, {"thread", "copies", "copy_async_wait"}, 1);
  expect_error(
      [] {
        copy_async(shared_memory() + 16 * thread(), kLetters, 16);
        copy_async_commit();
        copy_async_commit();
        if (thread() == 0) copy_async_wait<0>();
        copy_async_wait<2>();
      },
      {"thread 1", "copies", "copy_async_wait"}, 2);
  run_one([] { copy_async_commit(); }, 1);  // a group of none
}

// ---- matrix products

// Element (i, j) of matrix m.
uint32 element(int m, int i, int j) { return 1000 + m * 64 + i * 8 + j; }

void check_load_matrices(bool transposed) {
  emulation::run({1, 1, 1}, 64, 2 * 4 * 8 * 32, [&] {
    // rows are 32 bytes apart, and the matrices lie backwards
    const auto row = [&](int m, int i) { return shared_memory() + ((warp() * 4 + 3 - m) * 8 + i) * 32; };
    for (int j = 0; j < 8; ++j)
      reinterpret_cast<unsigned short*>(row(lane() / 8, lane() % 8))[j] =
          static_cast<unsigned short>(element(lane() / 8, lane() % 8, j) + 256 * warp());
    warp_barrier();
    uint32 words[4];
    load_matrices(words, row(lane() / 8, lane() % 8), transposed);
    for (int m = 0; m < 4; ++m)
      for (int high = 0; high < 2; ++high) {
        const int i = lane() / 4, j = 2 * (lane() % 4) + high;
        const uint32 expected = (transposed ? element(m, j, i) : element(m, i, j)) + 256 * warp();
        CHECK((words[m] >> 16 * high & 0xffff) == expected,
              "lane " + std::to_string(lane()) + " got a wrong number of matrix " + std::to_string(m));
      }
  });
}
CHECKED(matrices) { check_load_matrices(false); }
CHECKED(matrices_transposed) { check_load_matrices(true); }

CHECKED(matrices_at_odd_address) {
  expect_error([] { uint32 words[4]; load_matrices(words, shared_memory() + 16 * lane() + (lane() == 9) * 8, false); },
               {"thread 9", "16 bytes"});
}
CHECKED(matrices_outside_shared_memory) {
  expect_error([] { uint32 words[4]; load_matrices(words, shared_memory() + 16 * lane() + 528, false); },
               {"thread 31", "byte 1024"});
}
CHECKED(matrices_of_two_kinds) {
  expect_error([] { uint32 words[4]; load_matrices(words, shared_memory(), lane() == 3); }, {"load_matrices"});
}

template <class T>
uint32 pair(float low, float high) {
  return rounded<T>(low).bits | static_cast<uint32>(rounded<T>(high).bits) << 16;
}

// As PTX has it in "Matrix Fragments for mma.m16n8k16 with floating point type", where elements are counted one by one.
template <class T>
void check_multiply() {
  emulation::run({1, 1, 1}, 64, 0, [&] {
    const int group = lane() >> 2, member = lane() % 4, seed = 100 * warp();
    const auto left = [&](int e) {
      const int row = e < 2 || (e >= 4 && e < 6) ? group : group + 8;
      const int column = member * 2 + (e & 1) + (e >= 4 ? 8 : 0);
      return static_cast<float>(number(row + seed, column));
    };
    const auto right = [&](int e) {
      const int row = member * 2 + (e & 1) + (e >= 2 ? 8 : 0);
      return static_cast<float>(number(row + 50, group + seed));
    };
    const uint32 a[4] = {pair<T>(left(0), left(1)), pair<T>(left(2), left(3)), pair<T>(left(4), left(5)),
                         pair<T>(left(6), left(7))};
    const uint32 b[2] = {pair<T>(right(0), right(1)), pair<T>(right(2), right(3))};
    float d[4];
    int expected[4];
    for (int e = 0; e < 4; ++e) {
      const int row = e < 2 ? group : group + 8, column = member * 2 + (e & 1);
      expected[e] = number(row, column + 31);
      d[e] = static_cast<float>(expected[e]);
      for (int k = 0; k < 16; ++k) expected[e] += 2 * number(row + seed, k) * number(k + 50, column + seed);
    }
    multiply_add(d, a, b, T{});
    multiply_add(d, a, b, T{});
    for (int e = 0; e < 4; ++e)
      CHECK(d[e] == static_cast<float>(expected[e]),
            "lane " + std::to_string(lane()) + " has a wrong sum " + std::to_string(e));
  });
}
CHECKED(multiply_half) { check_multiply<Half>(); }
CHECKED(multiply_bfloat16) { check_multiply<BFloat16>(); }

// 16 of all numbers at a time, in the first column of a, times 1.
template <class T>
void check_multiply_all_numbers() {
  emulation::run({16, 1, 1}, 32, 0, [&] {
    for (int i = 0; i < 256; ++i) {
      const unsigned short first = static_cast<unsigned short>((block_x() * 256 + i) * 16);
      const T low{static_cast<unsigned short>(first + lane() / 4)}, high{static_cast<unsigned short>(low.bits + 8)};
      const uint32 a[4] = {lane() % 4 ? 0u : low.bits, lane() % 4 ? 0u : high.bits, 0, 0};
      const uint32 b[2] = {lane() % 4 ? 0 : pair<T>(1, 0), 0};
      float d[4] = {};
      multiply_add(d, a, b, T{});
      const float expected[4] = {widen<float>(low), widen<float>(low), widen<float>(high), widen<float>(high)};
      for (int e = 0; e < 4; ++e)
        CHECK(std::isnan(expected[e]) ? std::isnan(d[e]) : d[e] == expected[e],
              std::to_string(expected[e]) + " counts as " + std::to_string(d[e]));
    }
  });
}
CHECKED(multiply_all_halves) { check_multiply_all_numbers<Half>(); }
CHECKED(multiply_all_bfloat16s) { check_multiply_all_numbers<BFloat16>(); }

CHECKED(multiplications_of_two_kinds) {
  expect_error(
      [] {
        const uint32 a[4] = {}, b[2] = {};
        float d[4] = {};
        if (lane() < 5)
          multiply_add(d, a, b, Half{});
        else
          multiply_add(d, a, b, BFloat16{});
      },
      {"multiply_add of Half", "multiply_add of BFloat16"});
}

#else

CHECKED(functions_of_80) {
  expect_error([] { copy_async(shared_memory(), nullptr, 0); }, {"thread", "copy_async", "kArch"});
  expect_error([] { copy_async_commit(); }, {"thread", "copy_async_commit", "kArch"});
  expect_error([] { copy_async_wait<0>(); }, {"thread", "copy_async_wait", "kArch"});
  expect_error([] { uint32 words[4]; load_matrices(words, shared_memory(), false); }, {"load_matrices", "kArch"});
  expect_error([] { float d[4] = {}; const uint32 a[4] = {}, b[2] = {}; multiply_add(d, a, b, Half{}); },
               {"multiply_add", "kArch"});
  expect_error([] { float d[4] = {}; const uint32 a[4] = {}, b[2] = {}; multiply_add(d, a, b, BFloat16{}); },
               {"multiply_add", "kArch"});
}

#endif

// ---- WMMA, which both have

// Every warp multiplies matrices of its own, with rows or columns that have gaps.
template <bool LEFT_COLUMNS, bool RIGHT_COLUMNS>
void wmma() {
  constexpr int kLeft = 24, kRight = 40, kSum = 20, kBytes = 16 * (kLeft * 2 + kRight * 2 + kSum * 4);
  emulation::run({1, 1, 1}, 64, 2 * kBytes, [&] {
    Half* const a = reinterpret_cast<Half*>(shared_memory() + warp() * kBytes);
    Half* const b = a + 16 * kLeft;
    float* const d = reinterpret_cast<float*>(b + 16 * kRight);
    const int seed = 100 * warp();
    for (int i = lane(); i < 256; i += 32) {
      const int row = i / 16, column = i % 16;
      a[LEFT_COLUMNS ? row + column * kLeft : row * kLeft + column] =
          rounded<Half>(static_cast<float>(number(row + seed, column)));
      b[RIGHT_COLUMNS ? row + column * kRight : row * kRight + column] =
          rounded<Half>(static_cast<float>(number(row + 50, column + seed)));
    }
    warp_barrier();
    Operand left, right;
    load_left<LEFT_COLUMNS>(left, a, kLeft);
    load_right<RIGHT_COLUMNS>(right, b, kRight);
    Sum sum;
    for (float& each : sum.values) each = 3;
    multiply_add<LEFT_COLUMNS, RIGHT_COLUMNS>(sum, left, right);
    multiply_add<LEFT_COLUMNS, RIGHT_COLUMNS>(sum, left, right);
    store_sum(d, sum, kSum);
    warp_barrier();
    for (int i = lane(); i < 256; i += 32) {
      int expected = 3;
      for (int k = 0; k < 16; ++k) expected += 2 * number(i / 16 + seed, k) * number(k + 50, i % 16 + seed);
      CHECK(d[i / 16 * kSum + i % 16] == static_cast<float>(expected), "sum " + std::to_string(i) + " is wrong");
    }
    CHECK(std::isnan(d[16]) && std::isnan(d[19]), "numbers between the rows of the sum were written");
  });
}

const Half* halves(int at = 0) { return reinterpret_cast<const Half*>(shared_memory()) + at; }
float* floats(int at = 0) { return reinterpret_cast<float*>(shared_memory()) + at; }

CHECKED(wmma_at_odd_address) {
  expect_error([] { Operand x; load_left<false>(x, halves(8), 16); }, {"thread", "load_left", "32 bytes"});
  expect_error([] { Operand x; load_right<true>(x, halves(8), 16); }, {"thread", "load_right", "32 bytes"});
  expect_error([] { store_sum(floats(4), Sum{}, 16); }, {"thread", "store_sum", "32 bytes"}, 32, 2048);
  run_one([] { Operand x; load_left<false>(x, halves(16), 16); }, 32, 2048);
  run_one([] { store_sum(floats(8), Sum{}, 16); }, 32, 2048);
}
CHECKED(wmma_of_odd_stride) {
  expect_error([] { Operand x; load_left<true>(x, halves(), 20); }, {"thread", "ld 20", "8"});
  expect_error([] { Operand x; load_right<false>(x, halves(), 20); }, {"thread", "ld 20", "8"});
  expect_error([] { store_sum(floats(), Sum{}, 18); }, {"thread", "ld 18", "4"}, 32, 2048);
}
CHECKED(wmma_outside_shared_memory) {
  expect_error([] { Operand x; load_left<false>(x, halves(), 40); }, {"thread", "shared memory"});
  expect_error([] { Operand x; load_right<false>(x, halves(-16), 16); }, {"thread", "byte -32"});
  expect_error([] { store_sum(floats(8), Sum{}, 16); }, {"thread", "byte 32"});
}
CHECKED(wmma_of_different_matrices) {
  expect_error([] { Operand x; load_left<false>(x, halves(16 * (lane() / 16)), 16); }, {"load_left"});
  expect_error([] { Operand x; load_right<false>(x, halves(), 16 + 8 * (lane() / 16)); }, {"load_right"});
  expect_error([] { store_sum(floats(8 * (lane() / 16)), Sum{}, 16); }, {"store_sum"}, 32, 2048);
}
template <bool COLUMNS>
void wmma_loaded_otherwise_one() {
  expect_error([] {
    Operand a, b;
    Sum d{};
    load_left<COLUMNS>(a, halves(), 16);
    load_right<true>(b, halves(), 16);
    multiply_add<!COLUMNS, true>(d, a, b);
  }, {"left operand", "order"});
  expect_error([] {
    Operand a, b;
    Sum d{};
    load_left<true>(a, halves(), 16);
    load_right<COLUMNS>(b, halves(), 16);
    multiply_add<true, !COLUMNS>(d, a, b);
  }, {"right operand", "order"});
}
CHECKED(wmma_loaded_otherwise) {
  wmma_loaded_otherwise_one<false>();
  wmma_loaded_otherwise_one<true>();
  expect_error([] {
    Operand a;
    Sum d{};
    load_left<false>(a, halves(), 16);
    multiply_add<false, false>(d, a, a);
  }, {"right operand"});
}
CHECKED(wmma_not_loaded) {
  expect_error([] {
    const Operand a{};
    Operand b;
    Sum d{};
    load_right<false>(b, halves(), 16);
    multiply_add<false, false>(d, a, b);
  }, {"left operand"});
}

const Listed wmma_rows_rows("wmma_rows_rows", wmma<false, false>);
const Listed wmma_rows_columns("wmma_rows_columns", wmma<false, true>);
const Listed wmma_columns_rows("wmma_columns_rows", wmma<true, false>);
const Listed wmma_columns_columns("wmma_columns_columns", wmma<true, true>);

}  // namespace
