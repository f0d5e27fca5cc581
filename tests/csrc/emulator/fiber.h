// Fibres: what a CUDA thread is in the emulator. A fibre has a stack of its own and gives the
// processor away only where the emulator says so.
//
// Switching is six pushes and a change of the stack pointer on x86-64. ucontext, used elsewhere,
// does the same with two system calls for the signal mask (50 times slower). AddressSanitizer is
// told of every switch: it must know which stack is in use.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr std::size_t kStackBytes = 256 << 10;  // red zones make frames several times larger
#else
inline constexpr std::size_t kStackBytes = 64 << 10;
#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack_ != nullptr) munmap(stack_, page() + kStackBytes);
  }

  // Makes the next switch_to() start entry() on an empty stack. entry() must never return.
  void prepare(void (*entry)()) {
    if (stack_ == nullptr) map();
    char* const bottom = stack_ + page();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(bottom, kStackBytes);  // frames that the last run left for good
#endif
    fake_ = nullptr;
#if defined(__x86_64__)
    // A return address above six registers; after the return the stack is 8 below a multiple of
    // 16, as after a call.
    auto** const top = reinterpret_cast<void**>(bottom + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    pointer_ = top - 8;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Continues `next` and comes back when somebody continues this fibre.
  void switch_to(Fiber& next) {
#if defined(__SANITIZE_ADDRESS__)
    const bool own = next.stack_ != nullptr;  // else the stack of the process, where we came from
    __sanitizer_start_switch_fiber(&fake_, own ? next.stack_ + page() : next.bottom_,
                                   own ? kStackBytes : next.size_);
#endif
#if defined(__x86_64__)
    exchange(&pointer_, next.pointer_);
#else
    swapcontext(&context_, &next.context_);
#endif
    arrived(this);
  }

  // To be called first thing in entry(), by the fibre that runs: completes the switch.
  static void arrived(Fiber* self) {
    (void)self;
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(self->fake_, &bottom, &size);
    if (home() != nullptr && self->stack_ != nullptr && !home()->known_) {
      home()->bottom_ = bottom;  // the first switch of all comes from the stack of the process
      home()->size_ = size;
      home()->known_ = true;
    }
#endif
  }

  // The fibre that stands for the stack of the process.
  static Fiber*& home() {
    static Fiber* fiber = nullptr;
    return fiber;
  }

 private:
  static std::size_t page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

  void map() {
    void* const memory = mmap(nullptr, page() + kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page(), PROT_NONE) != 0) {
      std::perror("emulation: no memory for a stack");
      std::abort();
    }
    stack_ = static_cast<char*>(memory);
  }

#if defined(__x86_64__)
  __attribute__((naked, noinline,
                 no_sanitize("address", "undefined",
                             "thread"))) static void exchange(void** /* save */, void* /* load */) {
    asm volatile(
        "pushq %rbp\n\t pushq %rbx\n\t pushq %r12\n\t pushq %r13\n\t pushq %r14\n\t pushq %r15\n\t"
        "movq %rsp, (%rdi)\n\t"
        "movq %rsi, %rsp\n\t"
        "popq %r15\n\t popq %r14\n\t popq %r13\n\t popq %r12\n\t popq %rbx\n\t popq %rbp\n\t"
        "ret");
  }
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif

  char* stack_ = nullptr;  // one page that faults, then kStackBytes
  void* fake_ = nullptr;   // AddressSanitizer's record of this fibre
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  bool known_ = false;
};

}  // namespace emulation
