// Fibers: stacks, and the switch from one to another, which is all that a barrier costs.
#pragma once

#if !defined(__x86_64__) || !defined(__ELF__) || defined(LEWEL_EMULATION_PORTABLE)
#define LEWEL_UCONTEXT
#undef _FORTIFY_SOURCE  // its longjmp takes another stack for an error; it counts where the first header is included
#include <setjmp.h>
#include <ucontext.h>
#endif

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace lewel::cuda::emulation {

using Entry = void (*)();

#if defined(LEWEL_UCONTEXT)

// ucontext makes them, with a system call each; setjmp and longjmp switch without one.
struct Registers {
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

__attribute__((noinline)) inline void switch_registers(Registers& from, Registers& to) {
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

struct Registers {
  void* top = nullptr;

  void prepare(char* stack, size_t bytes, Entry entry) {
    void** words = reinterpret_cast<void**>(stack + bytes / 16 * 16) - 8;
    std::fill(words, words + 8, nullptr);
    words[6] = reinterpret_cast<void*>(entry);  // after the six registers; and its own caller, null, ends backtraces
    top = words;
  }
};

inline void switch_registers(Registers& from, Registers& to) { lewel_emulation_switch(&from.top, to.top); }

#endif

// What is saved of a fiber, or of what started the fibers, while another runs.
struct Context {
  Registers registers;
  char* stack = nullptr;
  size_t bytes = 0;

  void prepare(char* own_stack, size_t own_bytes, Entry entry) {
    stack = own_stack;
    bytes = own_bytes;
    registers.prepare(stack, bytes, entry);
  }
};

// AddressSanitizer wants to know of stacks, and forgets nothing about one that is used anew.
#if defined(__SANITIZE_ADDRESS__)
inline void switch_context(Context& from, Context& to) {
  void* own = nullptr;
  __sanitizer_start_switch_fiber(&own, to.stack, to.bytes);
  switch_registers(from.registers, to.registers);
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
}
#else
inline void switch_context(Context& from, Context& to) { switch_registers(from.registers, to.registers); }
#endif

// Memory for a stack, with some below it that nobody may touch.
class Stack {
 public:
  Stack() {
    base_ = static_cast<char*>(mmap(nullptr, kGuard + kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) fail();
    if (mprotect(base_ + kGuard, kBytes, PROT_READ | PROT_WRITE) != 0) {
      munmap(base_, kGuard + kBytes);
      fail();
    }
  }
  ~Stack() { munmap(base_, kGuard + kBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  char* data() const { return base_ + kGuard; }
  // Not the same for all threads: ends of equal alignment would fight for the same lines of the caches.
  static size_t bytes(int thread) { return kBytes - static_cast<size_t>(thread) % 61 * 320; }

 private:
  [[noreturn]] static void fail() {
    throw std::runtime_error("out of memory: " + std::to_string(kGuard + kBytes) +
                             " bytes for the stack of an emulated thread");
  }

  static constexpr size_t kGuard = 65536, kBytes = 262144;  // whole pages, where a page has 64 KiB too
  char* base_;
};

}  // namespace lewel::cuda::emulation
