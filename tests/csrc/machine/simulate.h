// A launch: the blocks of one multiprocessor cycle by cycle, the others only for what they write.
//
// Each scheduler issues one instruction a cycle, of the warp that it issued last if that can, else
// of the youngest one ([huerta], h100.h). What an instruction does happens when it is issued.
#pragma once

#include "scheduler.h"

namespace machine {

class Simulation {
 public:
  Simulation(Arrays& arrays, L2& l2) : stepper_(arrays), l2_(l2) {}

  // `others`: whether blocks of other multiprocessors run, too; later launches may need their
  // results.
  Outcome run(const Launch& launch, bool others) {
    launch_ = &launch;
    kernel_ = launch.kernel;
    out_ = Outcome();
    out_.places.resize(kernel_->code.size());
    out_.resident = resident_blocks(launch);
    if (out_.resident == 0) throw Error(kernel_->name + ": no multiprocessor takes a block of it");
    const auto active = static_cast<int>(std::min<int64_t>(launch.blocks(), H100::multiprocessors));
    const int64_t shared = launch.shared_bytes() * out_.resident;
    memory_ = std::make_unique<Memory>(l2_, H100::l1_size - carve_out(shared), active);
    time_blocks();
    out_.traffic = memory_->traffic;
    out_.dram_rate = memory_->dram_rate();
    for (int64_t b = 0; others && b < launch.blocks(); ++b) {
      if (b % H100::multiprocessors != 0) run_block(b);
    }
    return out_;
  }

 private:
  // What of the L1 cache becomes shared memory.
  static int64_t carve_out(int64_t bytes) {
    for (const int64_t kib : {0, 8, 16, 32, 64, 100, 132, 164, 196}) {
      if (bytes <= kib << 10) return kib << 10;
    }
    return H100::shared_size;
  }

  void time_blocks() {
    schedulers_.assign(H100::schedulers, Scheduler(*kernel_));
    next_block_ = 0;
    for (int r = 0; r < out_.resident; ++r) start_block(H100::block_start);
    int64_t now = 0;
    while (!running_.empty()) {
      int64_t next = kNever;
      bool any = false;
      for (Scheduler& s : schedulers_) {
        Slot* const slot = s.choose(now, next);
        if (slot == nullptr) continue;
        issue(*slot, now);
        any = true;
      }
      if (!any && next == kNever) deadlock();
      now = any ? now + 1 : next;
    }
    out_.cycles = now;
  }

  // The next block of this multiprocessor, if there is one.
  void start_block(int64_t at) {
    if (next_block_ >= launch_->blocks()) return;
    auto running = std::make_unique<Running>(*launch_, next_block_);
    next_block_ += H100::multiprocessors;
    out_.blocks_run += 1;
    for (auto& warp : running->warps) {
      auto slot = std::make_unique<Slot>();
      slot->running = running.get();
      slot->warp = warp.get();
      slot->issued = at;
      const auto index = static_cast<std::size_t>(warp->first_thread / kLanes);
      schedulers_[index % H100::schedulers].add(*slot);
      prepare(*slot, at, kBranches);
      slots_.push_back(std::move(slot));
    }
    running_.push_back(std::move(running));
  }

  // Finds out when the next instruction of a warp can go, `from` being when its stall ends.
  void prepare(Slot& slot, int64_t from, Reason why = kStalls) {
    slot.stalled = from;
    slot.ready = from;
    slot.reason = why;
    slot.pipe_was_busy = false;
    if (!slot.warp->pick()) {  // at an end, or all lanes wait
      slot.ready = kNever;
      return;
    }
    slot.scheduler->fetch(slot, why == kBranches);
    const Instruction& in = slot.next(*kernel_);
    for (int b = 0; b < 6; ++b) {
      if (in.wait >> b & 1) slot.wait_for(b, 0);
    }
    if (in.code == kDepbar) {
      const auto& o = in.operands;
      slot.wait_for(o[0].index, o.size() > 1 ? static_cast<std::size_t>(o[1].value) : 0);
    }
  }

  void issue(Slot& slot, int64_t now) {
    Warp& w = *slot.warp;
    const int at = w.group().at;
    const Instruction& in = kernel_->code[static_cast<std::size_t>(at)];
    const uint32_t lanes = w.group().lanes & w.guard(in);
    account(slot, at, lanes, now);
    Access access;
    const auto effect = stepper_.step(*slot.running, w, *kernel_, in, lanes, access);
    slot.scheduler->take(slot, in, lanes, access, now, *memory_, out_);
    int64_t from = now + std::max(in.stall, 1);
    if (effect == Control::kTaken) {
      from += in.code == kBsync || in.code == kWarpsync ? H100::converge : H100::branch;
    }
    Running* const released = stepper_.released();
    if (effect == Control::kArrives && released != nullptr) {
      slot.ready = kNever;  // the last one to arrive waits as long as the others from here on
    } else {
      prepare(slot, from, effect == Control::kTaken ? kBranches : kStalls);
    }
    if (released != nullptr) release(*released, at, now);
    if (effect == Control::kEnds && slot.running->alive == 0) retire(*slot.running, now);
  }

  void account(Slot& slot, int at, uint32_t lanes, int64_t now) {
    Place& place = out_.places[static_cast<std::size_t>(at)];
    place.issued += 1;
    place.lanes += __builtin_popcount(lanes);
    out_.issued += 1;
    // Branches and barriers take the stall with them; scoreboards count from its end.
    const bool whole = slot.reason == kBranches || slot.reason == kAtBarrier;
    const int64_t stalled = whole ? slot.issued : std::max(slot.stalled, slot.issued);
    place.waited[kStalls] += stalled - slot.issued;
    place.waited[slot.reason] += slot.ready - stalled;
    place.waited[slot.pipe_was_busy ? kPipeBusy : kNotSelected] += now - slot.ready;
    slot.issued = now;
  }

  // All warps of a block that wait may go on: those that wait for something else find out.
  void release(const Running& running, int at, int64_t now) {
    for (auto& slot : slots_) {
      if (slot->running == &running && slot->ready == kNever) {
        prepare(*slot, now + H100::barrier, kAtBarrier);
      }
    }
    if (running.block.index != std::array<uint32_t, 3>{0, 0, 0}) return;
    Rounds& r = out_.rounds[at];
    if (r.count > 0) r.gaps.push_back(now - r.last);
    r.last = now;
    r.count += 1;
  }

  void retire(const Running& running, int64_t now) {
    for (Scheduler& s : schedulers_) s.remove(running);
    const auto of_it = [&](const auto& slot) { return slot->running == &running; };
    slots_.erase(std::remove_if(slots_.begin(), slots_.end(), of_it), slots_.end());
    const auto it = [&](const auto& other) { return other.get() == &running; };
    running_.erase(std::find_if(running_.begin(), running_.end(), it));
    start_block(now + H100::block_start);
  }

  [[noreturn]] void deadlock() {
    std::string text = kernel_->name + ": nothing goes on; lanes wait";
    for (const auto& slot : slots_) {
      for (const Group& g : slot->warp->groups) {
        text += " at " + std::to_string(16 * g.at) + " (thread " +
                std::to_string(slot->warp->first_thread + __builtin_ctz(g.lanes)) + ")";
      }
    }
    throw Error(text);
  }

  // Without time.
  void run_block(int64_t index) {
    Running running(*launch_, index);
    bool any = true;
    while (any) {
      any = false;
      for (auto& w : running.warps) {
        while (w->pick()) {
          const Instruction& in = kernel_->code[static_cast<std::size_t>(w->group().at)];
          Access access;
          stepper_.step(running, *w, *kernel_, in, w->group().lanes & w->guard(in), access);
          if (access.global) {
            for (const uint64_t s : units(access, kSector)) l2_.touch(s);
          }
          any = true;
        }
      }
    }
    stepper_.released();
    if (running.alive > 0) throw Error(kernel_->name + ": nothing goes on in a block");
  }

  Stepper stepper_;
  L2& l2_;
  const Launch* launch_ = nullptr;
  const Kernel* kernel_ = nullptr;
  Outcome out_;
  std::unique_ptr<Memory> memory_;
  std::vector<Scheduler> schedulers_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::unique_ptr<Running>> running_;
  int64_t next_block_ = 0;
};

}  // namespace machine
