// A Device (cuda/stages.h) that runs no kernel and keeps what each was launched with: for the table
// of resources (tools/kernel_launches.py), over sizes that would take an emulator hours.
#pragma once

#include <map>
#include <string>
#include <type_traits>

#include "emulation.h"

namespace emulation {

// Stands for any array, which nobody looks into. Not null: launchers ask for that.
struct AnyArray {
  template <class P>
  operator P*() const {
    return reinterpret_cast<P*>(std::uintptr_t{16});
  }
};

class Recorder {
 public:
  struct Launch {
    int64_t threads = 0, shared = 0;  // the most of all launches: of a block, in bytes
  };
  template <class P>
  struct Array {
    P* get() const { return AnyArray(); }
  };

  // A block may have `shared_limit` bytes.
  explicit Recorder(int64_t shared_limit) : shared_limit_(shared_limit) {}

  int64_t shared_limit() const { return shared_limit_; }

  template <class P>
  Array<P> allocate(int64_t count) const {
    if (count < 0) throw Error("allocate: " + std::to_string(count) + " elements");
    return {};
  }

  template <class... Parameters, class... Values>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
              const Values&...) {
    static_assert(std::is_invocable_v<void (*)(Parameters...), const Values&...>);
    if (blocks == 0) return;
    if (blocks < 0 || blocks > 2147483647 || threads < 1 || threads > 1024 || shared < 0 ||
        shared > shared_limit_) {
      throw Error(kernel_name(kernel) + ": launched with " + std::to_string(blocks) +
                  " blocks of " + std::to_string(threads) + " threads and " +
                  std::to_string(shared) + " bytes of shared memory, of which a block may have " +
                  std::to_string(shared_limit_));
    }
    Launch& most = launches_[reinterpret_cast<void*>(kernel)];
    if (threads > most.threads) most.threads = threads;
    if (shared > most.shared) most.shared = shared;
  }

  // By the mangled name of the kernel.
  std::map<std::string, Launch> launches() const {
    std::map<std::string, Launch> named;
    for (const auto& [kernel, launch] : launches_) {
      Dl_info info{};
      if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != kernel) {
        throw Error("a kernel has no name: link with -rdynamic");
      }
      named[info.dli_sname] = launch;
    }
    return named;
  }

 private:
  int64_t shared_limit_;
  std::map<void*, Launch> launches_;
};

}  // namespace emulation
