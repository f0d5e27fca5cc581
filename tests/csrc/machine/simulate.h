// A launch: the blocks of one multiprocessor cycle by cycle, the others only for what they write.
//
// Each scheduler issues one instruction a cycle, of the warp that it issued last if that can, else
// of the youngest one ([huerta], h100.h). What an instruction does happens when it is issued.
#pragma once

#include "multiprocessor.h"

namespace machine {

class Simulation {
 public:
  Simulation(Arrays& arrays, L2& l2) : executor_(arrays), l2_(l2) {}

  // `others`: whether blocks of other multiprocessors run, too; later launches may need their
  // results.
  Outcome run(const Launch& launch, bool others) {
    launch_ = &launch;
    kernel_ = launch.kernel;
    out_ = Outcome();
    out_.places.resize(kernel_->code.size());
    out_.resident = resident_blocks(launch);
    if (out_.resident == 0) throw Error(kernel_->name + ": no multiprocessor takes a block of it");
    const int64_t blocks = launch.blocks();
    out_.active = static_cast<int>(std::min<int64_t>(blocks, H100::multiprocessors));
    time_blocks(blocks);
    if (others) {
      for (int64_t b = 0; b < blocks; ++b) {
        if (b % H100::multiprocessors != 0) run_block(b);
      }
    }
    return out_;
  }

 private:
  static constexpr int64_t kNever = int64_t{1} << 60;

  struct Slot {  // a warp and when it goes on
    Running* running = nullptr;
    Warp* warp = nullptr;
    int64_t issued = 0;   // the last time
    int64_t stalled = 0;  // until when its stall count goes
    int64_t ready = 0;
    Reason reason = kStalls;
    bool pipe_was_busy = false;
    std::array<std::vector<int64_t>, 6> boards;
    std::array<Reason, 6> board_reasons{};
    int64_t copies = 0;  // when all LDGSTS so far are done
    bool done = false;
  };
  struct Scheduler {
    std::vector<Slot*> slots;
    Slot* last = nullptr;
    int64_t fma = 0, imad = 0, alu = 0, fp64 = 0, special = 0, uniform = 0, memory = 0;
  };

  // --- time --------------------------------------------------------------------------------------

  void time_blocks(int64_t blocks) {
    const int64_t shared =
        (launch_->shared + kernel_->shared + H100::shared_reserved) * out_.resident;
    memory_ = std::make_unique<Memory>(l2_, H100::l1_size - carve_out(shared), out_.active);
    schedulers_ = std::vector<Scheduler>(H100::schedulers);
    slots_.clear();
    running_.clear();
    lines_.assign(kernel_->code.size() / 8 + 1, kNever);
    next_block_ = 0;
    blocks_ = blocks;
    for (int r = 0; r < out_.resident; ++r) start_block(H100::block_start);
    int64_t now = 0;
    while (!running_.empty()) {
      int64_t next = kNever;
      bool any = false;
      for (Scheduler& s : schedulers_) {
        Slot* const slot = choose(s, now, next);
        if (slot == nullptr) continue;
        issue(s, *slot, now);
        any = true;
      }
      retire(now);
      if (any) {
        ++now;
      } else if (next == kNever && !running_.empty()) {
        deadlock();
      } else {
        now = std::max(next, now + 1);
      }
    }
    out_.cycles = now;
    out_.traffic = memory_->traffic;
    out_.dram_rate = memory_->dram_rate();
  }

  static int64_t carve_out(int64_t bytes) {
    for (const int64_t kib : {0, 8, 16, 32, 64, 100, 132, 164, 196, 228}) {
      if (bytes <= kib << 10) return kib << 10;
    }
    return H100::shared_size;
  }

  void start_block(int64_t at) {
    if (next_block_ >= blocks_) return;
    auto running = std::make_unique<Running>(*launch_, next_block_);
    next_block_ += H100::multiprocessors;
    out_.blocks_run += 1;
    for (auto& warp : running->warps) {
      auto slot = std::make_unique<Slot>();
      slot->running = running.get();
      slot->warp = warp.get();
      slot->issued = at;
      Scheduler& s =
          schedulers_[static_cast<std::size_t>(warp->first_thread / kLanes) % H100::schedulers];
      s.slots.push_back(slot.get());
      prepare(*slot, at);
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
    if (slot.warp->done()) {
      slot.done = true;
      slot.ready = kNever;
      return;
    }
    if (!slot.warp->pick()) {
      slot.ready = kNever;
      return;
    }
    const int at = slot.warp->group().at;
    const Instruction& in = kernel_->code[static_cast<std::size_t>(at)];
    const auto line = static_cast<std::size_t>(at / 8);
    if (lines_[line] == kNever) lines_[line] = from + H100::line_miss;
    later(slot, lines_[line], kBranches);
    for (int b = 0; b < 6; ++b) {
      if (in.wait >> b & 1) wait_for(slot, b, 0);
    }
    if (in.code == kDepbar) {
      wait_for(slot, in.operands[0].index,
               in.operands.size() > 1 ? static_cast<std::size_t>(in.operands[1].value) : 0);
    }
  }
  static void later(Slot& slot, int64_t when, Reason why) {
    if (when <= slot.ready) return;
    slot.ready = when;
    slot.reason = why;
  }
  // Until at most `left` of a scoreboard's instructions are under way.
  static void wait_for(Slot& slot, int board, std::size_t left) {
    auto& times = slot.boards[static_cast<std::size_t>(board)];
    if (times.size() <= left) return;
    std::sort(times.begin(), times.end());
    later(slot, times[times.size() - 1 - left],
          slot.board_reasons[static_cast<std::size_t>(board)]);
    if (left == 0) times.clear();
  }

  Slot* choose(Scheduler& s, int64_t now, int64_t& next) {
    const auto can = [&](Slot* slot) {
      if (slot->ready > now) {
        next = std::min(next, slot->ready);
        return false;
      }
      const int64_t free = pipe_free(s, *slot);
      if (free <= now) return true;
      slot->pipe_was_busy = true;
      next = std::min(next, free);
      return false;
    };
    if (s.last != nullptr && can(s.last)) return s.last;
    for (auto slot = s.slots.rbegin(); slot != s.slots.rend(); ++slot) {
      if (*slot != s.last && can(*slot)) return s.last = *slot;
    }
    return nullptr;
  }

  int64_t pipe_free(const Scheduler& s, const Slot& slot) const {
    const Instruction& in = kernel_->code[static_cast<std::size_t>(slot.warp->group().at)];
    switch (in.pipe) {
      case Pipe::kFma:
        return std::min(s.fma, s.imad);
      case Pipe::kImad:
        return s.imad;
      case Pipe::kAlu:
        return s.alu;
      case Pipe::kFp64:
        return s.fp64;
      case Pipe::kSpecial:
        return s.special;
      case Pipe::kUniform:
        return s.uniform;
      case Pipe::kMemory:
        return s.memory - H100::queue * H100::memory;
      default:
        return 0;
    }
  }

  void issue(Scheduler& s, Slot& slot, int64_t now) {
    Warp& w = *slot.warp;
    const int at = w.group().at;
    const Instruction& in = kernel_->code[static_cast<std::size_t>(at)];
    const uint32_t lanes = w.group().lanes & w.guard(in);
    account(slot, at, lanes, now);
    Access access;
    const Control::Effect effect = step(*slot.running, w, in, lanes, access);
    finish(s, slot, in, lanes, access, now);
    const int64_t from = now + std::max(in.stall, 1);
    switch (effect) {
      case Control::kTaken:
        prepare(slot, from + branch_cost(in), kBranches);
        break;
      case Control::kArrives: {
        arrived(slot, at, now);
        break;
      }
      default:
        prepare(slot, from);
        break;
    }
  }
  static int branch_cost(const Instruction& in) {
    return in.code == kBsync || in.code == kWarpsync ? H100::converge : H100::branch;
  }

  void account(Slot& slot, int at, uint32_t lanes, int64_t now) {
    Place& place = out_.places[static_cast<std::size_t>(at)];
    place.issued += 1;
    place.lanes += __builtin_popcount(lanes);
    const int64_t stalled = std::max(slot.stalled, slot.issued);
    if (slot.reason == kBranches || slot.reason == kAtBarrier) {
      place.waited[slot.reason] += slot.ready - slot.issued;
    } else {
      place.waited[kStalls] += stalled - slot.issued;
      place.waited[slot.reason] += slot.ready - stalled;
    }
    place.waited[slot.pipe_was_busy ? kPipeBusy : kNotSelected] += now - slot.ready;
    slot.issued = now;
    out_.issued += 1;
  }

  // Pipes and scoreboards of what was issued.
  void finish(Scheduler& s, Slot& slot, const Instruction& in, uint32_t lanes, const Access& access,
              int64_t now) {
    int64_t result = now + H100::vote, operands = now + H100::operands;
    Reason why = kShortBoard;
    auto& busy = out_.busy[static_cast<std::size_t>(in.pipe)];
    const auto occupy = [&](int64_t& pipe, int cycles) {
      pipe = now + cycles;
      busy += cycles;
    };
    switch (in.pipe) {
      case Pipe::kFma:
        occupy(s.fma <= now ? s.fma : s.imad, H100::fma);
        out_.arithmetic += __builtin_popcount(lanes) / 128.0;
        break;
      case Pipe::kImad:
        occupy(s.imad, H100::imad);
        break;
      case Pipe::kAlu:
        occupy(s.alu, H100::alu);
        break;
      case Pipe::kFp64:
        occupy(s.fp64, H100::fp64);
        out_.arithmetic += __builtin_popcount(lanes) / 64.0;
        result = now + H100::fp64_result;
        break;
      case Pipe::kSpecial:
        occupy(s.special, H100::special);
        result = now + H100::mufu;
        break;
      case Pipe::kUniform:
        occupy(s.uniform, H100::uniform);
        break;
      case Pipe::kMemory: {
        const int64_t begin = std::max({now, s.memory, memory_->free() - H100::backlog});
        s.memory = begin + H100::memory;
        busy += H100::memory;
        if (in.code == kShfl || in.code == kLds || in.code == kSts || in.code == kLdg ||
            in.code == kStg || in.code == kLdgsts) {
          const auto times =
              in.code == kShfl ? memory_->shuffle(begin) : memory_->access(begin, access);
          result = times.result;
          operands = times.operands;
          if (access.global) why = kLongBoard;
          if (in.code == kLdgsts) slot.copies = std::max(slot.copies, result);
        } else if (in.code == kLdgdepbar) {
          result = std::max(now, slot.copies);
          why = kLongBoard;
        } else if (in.code == kMembar) {
          result = begin + H100::l2_hit;
          why = kLongBoard;
        } else {
          result = begin + (in.code == kLdc ? H100::constant : H100::system);
        }
        break;
      }
      default:
        break;
    }
    const int board = in.code == kLdgdepbar && in.write == 7 ? 0 : in.write;
    if (board != 7) count(slot, board, result, why);
    if (in.read != 7) count(slot, in.read, operands, why);
  }
  static void count(Slot& slot, int board, int64_t until, Reason why) {
    slot.boards[static_cast<std::size_t>(board)].push_back(until);
    slot.board_reasons[static_cast<std::size_t>(board)] = why;
  }

  // --- what happens
  // --------------------------------------------------------------------------------

  Control::Effect step(Running& running, Warp& w, const Instruction& in, uint32_t lanes,
                       Access& access) {
    if (in.code == kBar) return arrive(running, w, in, lanes);
    const bool control = in.code >= kBra && in.code <= kExit && in.code != kEndcollective;
    if (!control) {
      if (lanes != 0) executor_.run(w, in, lanes, access);
      w.group().at += 1;
      return Control::kNext;
    }
    if (lanes == 0 && in.code != kBra) {
      w.group().at += 1;
      return Control::kNext;
    }
    if ((in.code == kCall || in.code == kBsync) && lanes != w.group().lanes) {
      throw Error(in.name + " (" + in.line + "): by some of the lanes only");
    }
    const uint32_t before = w.ended;
    const Control::Effect effect = Control::run(w, *kernel_, in, lanes);
    if (in.code == kExit) {
      running.alive -= __builtin_popcount(w.ended & ~before);
      for (auto& [id, barrier] : running.barriers) complete(running, id, barrier);
    }
    return effect;
  }

  Control::Effect arrive(Running& running, Warp& w, const Instruction& in, uint32_t lanes) {
    Group& g = w.group();
    g.at += 1;
    if (lanes == 0) return Control::kNext;
    const auto& o = in.operands;
    const auto number = [&](const Operand& x) {
      return static_cast<int>(w.raw(x)[__builtin_ctz(lanes)]);
    };
    const int id = number(o.at(0));
    auto& barrier = running.barriers[id];
    barrier.arrived += __builtin_popcount(g.lanes);
    for (std::size_t i = 1; i < o.size(); ++i) {
      if (o[i].is_predicate()) {
        const uint32_t yes = w.predicate(o[i]) & g.lanes;
        barrier.any |= yes != 0 ? ~0u : 0u;
        if (yes != g.lanes) barrier.all = 0;
        barrier.count += __builtin_popcount(yes);
      } else {
        barrier.expected = number(o[i]);
      }
    }
    barrier.all_wanted = in.has("AND");
    if (!in.has("ARV")) {
      g.state = Group::kBarrier;
      g.meeting = id;
    }
    complete(running, id, barrier);
    return in.has("ARV") ? Control::kNext : Control::kArrives;
  }

  // Lets all go on if everybody is there.
  void complete(Running& running, int id, Running::Barrier& barrier) {
    const int expected = barrier.expected > 0 ? barrier.expected : running.alive;
    if (barrier.arrived == 0 || barrier.arrived < expected) return;
    for (auto& w : running.warps) {
      for (Group& g : w->groups) {
        if (g.state != Group::kBarrier || g.meeting != id) continue;
        g.state = Group::kRuns;
        w->vote = barrier.all_wanted ? barrier.all : barrier.any;
        w->vote_count = barrier.count;
      }
    }
    barrier = {};
    released_ = &running;
  }

  // After an arrival: the warps that can go on do so together.
  void arrived(Slot& slot, int at, int64_t now) {
    slot.ready = kNever;
    if (released_ == nullptr) return prepare_waiting(slot, now);
    Running* const running = released_;
    released_ = nullptr;
    for (auto& other : slots_) {
      if (other->running == running && !other->done && (other->ready == kNever)) {
        prepare(*other, now + H100::barrier, kAtBarrier);
      }
    }
    if (running->block.index == std::array<uint32_t, 3>{0, 0, 0}) {
      Rounds& r = out_.rounds[at];
      if (r.count > 0) r.gaps.push_back(now - r.last);
      if (r.count == 0) r.first = now;
      r.last = now;
      r.count += 1;
    }
  }
  void prepare_waiting(Slot& slot, int64_t now) {  // another group of the warp may go on
    if (slot.warp->pick()) prepare(slot, now + 1);
  }

  void retire(int64_t now) {
    if (released_ != nullptr) {  // a barrier was left by the end of a thread
      Running* const running = released_;
      released_ = nullptr;
      for (auto& other : slots_) {
        if (other->running == running && !other->done && other->ready == kNever) {
          prepare(*other, now + H100::barrier, kAtBarrier);
        }
      }
    }
    for (std::size_t i = 0; i < running_.size(); ++i) {
      if (running_[i]->alive > 0) continue;
      Running* const gone = running_[i].get();
      for (Scheduler& s : schedulers_) {
        s.slots.erase(std::remove_if(s.slots.begin(), s.slots.end(),
                                     [&](Slot* x) { return x->running == gone; }),
                      s.slots.end());
        s.last = nullptr;
      }
      slots_.erase(
          std::remove_if(slots_.begin(), slots_.end(), [&](auto& x) { return x->running == gone; }),
          slots_.end());
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
      start_block(now + H100::block_start);
      i = static_cast<std::size_t>(-1);
    }
  }

  [[noreturn]] void deadlock() {
    std::string text = kernel_->name + ": nothing goes on:";
    for (auto& slot : slots_) {
      for (const Group& g : slot->warp->groups) {
        text += " " + std::to_string(slot->warp->first_thread) + ":" + std::to_string(g.state) +
                "@" + std::to_string(16 * g.at);
      }
    }
    throw Error(text);
  }

  // --- without time ------------------------------------------------------------------------------

  void run_block(int64_t index) {
    Running running(*launch_, index);
    bool any = true;
    while (any) {
      any = false;
      for (auto& w : running.warps) {
        while (!w->done() && w->pick()) {
          const Instruction& in = kernel_->code[static_cast<std::size_t>(w->group().at)];
          Access access;
          step(running, *w, in, w->group().lanes & w->guard(in), access);
          released_ = nullptr;
          if (access.global) {
            for (const uint64_t s : units(access, kSector)) l2_.touch(s);
          }
          any = true;
        }
      }
    }
    if (running.alive > 0) throw Error(kernel_->name + ": nothing goes on in a block");
  }

  Executor executor_;
  L2& l2_;
  const Launch* launch_ = nullptr;
  const Kernel* kernel_ = nullptr;
  Outcome out_;
  std::unique_ptr<Memory> memory_;
  std::vector<Scheduler> schedulers_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::unique_ptr<Running>> running_;
  std::vector<int64_t> lines_;  // when eight instructions are there
  int64_t next_block_ = 0, blocks_ = 0;
  Running* released_ = nullptr;
};

}  // namespace machine
