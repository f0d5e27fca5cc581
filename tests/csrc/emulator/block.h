// One block of threads: who runs, who waits where, and what the lanes of a warp hand each other.
//
// A thread runs until it waits (at a barrier of the block, or for its warp) or ends. Every named
// lane must arrive at the very same call of a warp operation, every thread of the block at the very
// same barrier: what would hang or be undefined on a device is an Error that names the place.
// Threads run warp by warp, forward, reversed or in a seeded random order.
#pragma once

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "types.h"

namespace emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Order {
  enum Kind { kForward, kReversed, kRandom } kind = kForward;
  std::uint64_t seed = 1;
};

// A place in the source: what tells two barriers apart.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& s) const { return line == s.line && !std::strcmp(file, s.file); }
  std::string text() const {
    const char* name = std::strrchr(file, '/');
    return std::string(name == nullptr ? file : name + 1) + ":" + std::to_string(line);
  }
};

constexpr int kWarp = 32;
enum class State : std::uint8_t { kRuns, kWaitsForBlock, kWaitsForWarp, kEnded };

struct Thread {
  Fiber fiber;
  dim3 index;  // threadIdx
  State state = State::kEnded;
  const char* operation = "";  // what it waits at, with these operands
  Site site;
  std::uint32_t mask = 0;
  int source = 0;            // lane a shuffle reads
  std::uint64_t value = 0;   // operand of a warp operation, then its result
  bool predicate = false;    // operand of a vote
  std::uint32_t ballot = 0;  // its result
  std::uint32_t most = 0;    // the largest operand of a reduction
};

struct Warp {
  std::uint32_t runnable = 0;                               // lanes that can continue
  std::uint32_t lanes = 0;                                  // lanes that exist
  std::uint32_t waiting = 0;                                // lanes in a warp operation
  std::uint32_t clock = 0;                                  // counts __syncwarp
  std::array<std::array<std::uint32_t, kWarp>, kWarp> met;  // clock of the last __syncwarp of two
};

class Block {
 public:
  static Block& instance() {
    static Block block;
    return block;
  }

  int current = 0;  // linear index of the running thread
  int threads = 0;
  std::uint32_t epoch = 0;  // counts block barriers, over all blocks of all launches
  int vote = 0;             // predicates counted at the last block barrier
  std::vector<Warp> warps;

  Thread& thread(int t) { return *threads_[static_cast<std::size_t>(t)]; }

  // Runs body(context) in every thread of a block, to the end of all.
  void run(dim3 shape, Order order, void (*body)(void*), void* context) {
    prepare(shape, order);
    body_ = body;
    context_ = context;
    while (true) {
      for (int w = 0; w < static_cast<int>(warps.size()); ++w) run_warp(pick_warp(w));
      if (!error_.empty()) throw Error(std::exchange(error_, std::string()));
      int ended = 0, waiting = 0;
      for (int t = 0; t < threads; ++t) {
        ended += thread(t).state == State::kEnded;
        waiting += thread(t).state == State::kWaitsForBlock;
      }
      if (ended == threads) return;
      if (any_runnable()) continue;  // random order leaves a warp early
      if (waiting != threads || !same_site()) throw Error("deadlock: " + describe());
      release();
    }
  }

  // --- called by the running thread ------------------------------------------------------------

  [[noreturn]] void fail(const std::string& message) {
    error_ = message;
    thread(current).fiber.switch_to(*Fiber::home());
    std::abort();  // nobody continues a thread that failed
  }

  int barrier(const char* operation, Site site, bool predicate) {
    Thread& self = wait(State::kWaitsForBlock, operation, site);
    self.predicate = predicate;
    self.fiber.switch_to(*Fiber::home());
    return vote;
  }

  // The lanes of `mask` meet; afterwards each has the value of its source lane and the ballot.
  Thread& meet(const char* operation, Site site, std::uint32_t mask, std::uint64_t value,
               int source, bool predicate) {
    Warp& warp = warps[static_cast<std::size_t>(current / kWarp)];
    const int lane = current % kWarp;
    mask &= warp.lanes;  // lanes that a short last warp does not have
    if ((mask >> lane & 1u) == 0) {
      fail(std::string(operation) + " at " + site.text() + ": thread " + std::to_string(current) +
           " is not in its own mask");
    }
    Thread& self = wait(State::kWaitsForWarp, operation, site);
    self.mask = mask;
    self.value = value;
    self.source = source;
    self.predicate = predicate;
    warp.waiting |= 1u << lane;
    if ((warp.waiting & mask) == mask && all_arrived(self)) complete(warp, self);
    self.fiber.switch_to(*Fiber::home());
    return self;
  }

  // True if what thread `before` did at `clock` of their warp is ordered before `now` by
  // __syncwarp.
  bool ordered(int before, std::uint32_t clock, int now) const {
    if (before / kWarp != now / kWarp) return false;
    const Warp& warp = warps[static_cast<std::size_t>(now / kWarp)];
    return warp.met[static_cast<std::size_t>(before % kWarp)]
                   [static_cast<std::size_t>(now % kWarp)] > clock;
  }

  std::uint32_t clock() const { return warps[static_cast<std::size_t>(current / kWarp)].clock; }

 private:
  void prepare(dim3 shape, Order order) {
    order_ = order;
    random_ = order.seed * 0x9e3779b97f4a7c15ull + 1;
    threads = static_cast<int>(shape.x * shape.y * shape.z);
    ++epoch;
    while (threads_.size() < static_cast<std::size_t>(threads)) {
      threads_.push_back(std::make_unique<Thread>());
    }
    warps.resize(static_cast<std::size_t>((threads + kWarp - 1) / kWarp));
    for (Warp& warp : warps) {
      warp.runnable = warp.lanes = warp.waiting = warp.clock = 0;
      for (auto& row : warp.met) row.fill(0);
    }
    Fiber::home() = &home_;
    for (int t = 0; t < threads; ++t) {
      const auto n = static_cast<unsigned>(t);
      thread(t).index = dim3(n % shape.x, n / shape.x % shape.y, n / (shape.x * shape.y));
      thread(t).fiber.prepare(&Block::entry);
      warps[static_cast<std::size_t>(t / kWarp)].lanes |= 1u << (t % kWarp);
      resume(t);
    }
  }

  static void entry() {
    Block& block = instance();
    Thread& self = block.thread(block.current);
    Fiber::arrived(&self.fiber);
    block.body_(block.context_);
    self.state = State::kEnded;
    self.fiber.switch_to(block.home_);
    std::abort();  // nobody continues a thread that ended
  }

  std::uint64_t random() {  // xorshift64*
    random_ ^= random_ >> 12;
    random_ ^= random_ << 25;
    random_ ^= random_ >> 27;
    return random_ * 0x2545f4914f6cdd1dull >> 33;
  }

  int pick_warp(int w) {
    const auto n = static_cast<int>(warps.size());
    if (order_.kind == Order::kForward) return w;
    if (order_.kind == Order::kReversed) return n - 1 - w;
    return static_cast<int>(random() % static_cast<std::uint64_t>(n));
  }

  int pick_lane(std::uint32_t runnable) {
    if (order_.kind == Order::kForward) return __builtin_ctz(runnable);
    if (order_.kind == Order::kReversed) return 31 - __builtin_clz(runnable);
    auto skip = random() % static_cast<std::uint64_t>(__builtin_popcount(runnable));
    while (skip-- > 0) runnable &= runnable - 1;
    return __builtin_ctz(runnable);
  }

  void run_warp(int w) {
    Warp& warp = warps[static_cast<std::size_t>(w)];
    while (warp.runnable != 0 && error_.empty()) {
      if (order_.kind == Order::kRandom && random() % 64 == 0) return;
      const int lane = pick_lane(warp.runnable);
      warp.runnable &= ~(1u << lane);
      current = w * kWarp + lane;
      set_thread_index(thread(current).index);
      home_.switch_to(thread(current).fiber);
    }
  }

  static void set_thread_index(dim3 index);  // launch.h: it holds threadIdx

  bool any_runnable() const {
    for (const Warp& warp : warps) {
      if (warp.runnable != 0) return true;
    }
    return false;
  }

  Thread& wait(State state, const char* operation, Site site) {
    Thread& self = thread(current);
    self.state = state;
    self.operation = operation;
    self.site = site;
    return self;
  }

  void resume(int t) {
    thread(t).state = State::kRuns;
    warps[static_cast<std::size_t>(t / kWarp)].runnable |= 1u << (t % kWarp);
  }

  bool same_site() {
    for (int t = 1; t < threads; ++t) {
      if (!(thread(t).site == thread(0).site)) return false;
    }
    return true;
  }

  void release() {
    vote = 0;
    for (int t = 0; t < threads; ++t) vote += thread(t).predicate;
    for (int t = 0; t < threads; ++t) resume(t);
    ++epoch;
  }

  bool all_arrived(const Thread& self) {
    for (std::uint32_t rest = self.mask; rest != 0; rest &= rest - 1) {
      const Thread& other = thread(current / kWarp * kWarp + __builtin_ctz(rest));
      if (other.state != State::kWaitsForWarp || other.mask != self.mask ||
          std::strcmp(other.operation, self.operation) != 0 || !(other.site == self.site)) {
        return false;
      }
    }
    return true;
  }

  void complete(Warp& warp, const Thread& last) {
    const int first = current / kWarp * kWarp;
    std::array<std::uint64_t, kWarp> values{};
    std::uint32_t ballot = 0, most = 0;
    const std::uint32_t mask = last.mask;
    for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      values[static_cast<std::size_t>(lane)] = thread(first + lane).value;
      ballot |= static_cast<std::uint32_t>(thread(first + lane).predicate) << lane;
      const auto operand = static_cast<std::uint32_t>(thread(first + lane).value);
      most = operand > most ? operand : most;
    }
    for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      Thread& other = thread(first + __builtin_ctz(rest));
      if ((mask >> other.source & 1u) == 0) {
        fail(std::string(other.operation) + " at " + other.site.text() + ": thread " +
             std::to_string(first + __builtin_ctz(rest)) + " reads lane " +
             std::to_string(other.source) + ", which does not take part");
      }
      other.value = values[static_cast<std::size_t>(other.source)];
      other.ballot = ballot;
      other.most = most;
    }
    if (std::strcmp(last.operation, "__syncwarp") == 0) order_lanes(warp, mask);
    warp.waiting &= ~mask;
    for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      resume(first + __builtin_ctz(rest));
    }
  }

  // CUDA promises an order of memory for __syncwarp only: shuffles and votes move values, no more.
  static void order_lanes(Warp& warp, std::uint32_t mask) {
    ++warp.clock;
    for (std::uint32_t a = mask; a != 0; a &= a - 1) {
      for (std::uint32_t b = mask; b != 0; b &= b - 1) {
        warp.met[static_cast<std::size_t>(__builtin_ctz(a))]
                [static_cast<std::size_t>(__builtin_ctz(b))] = warp.clock;
      }
    }
  }

  // Who waits where, neighbours together: "threads 0-31 wait at __syncthreads (a.cuh:12); ...".
  std::string describe() {
    std::string text;
    for (int t = 0; t < threads;) {
      int end = t + 1;
      while (end < threads && where(end) == where(t)) ++end;
      if (!text.empty()) text += "; ";
      text += (end - t == 1 ? "thread " + std::to_string(t)
                            : "threads " + std::to_string(t) + "-" + std::to_string(end - 1)) +
              " " + where(t);
      t = end;
    }
    return text;
  }

  std::string where(int t) {
    const Thread& self = thread(t);
    if (self.state == State::kEnded) return "ended";
    std::string text = std::string("wait at ") + self.operation + " (" + self.site.text() + ")";
    if (self.state != State::kWaitsForWarp) return text;
    char mask[16];
    std::snprintf(mask, sizeof mask, "%08x", self.mask);
    return text + " for lanes " + mask;
  }

  std::vector<std::unique_ptr<Thread>> threads_;
  Fiber home_;
  Order order_;
  std::uint64_t random_ = 1;
  std::string error_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
};

}  // namespace emulation
