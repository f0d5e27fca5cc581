// A scheduler of a multiprocessor: which warp issues, the pipes, the scoreboards, the code at hand.
#pragma once

#include "blocks.h"
#include "outcome.h"

namespace machine {

constexpr int64_t kNever = int64_t{1} << 60;

class Scheduler;

// A warp, and when it goes on.
struct Slot {
  Running* running = nullptr;
  Warp* warp = nullptr;
  Scheduler* scheduler = nullptr;
  int64_t issued = 0;   // the last time
  int64_t stalled = 0;  // until when its stall count goes
  int64_t ready = 0;
  Reason reason = kStalls;
  bool pipe_was_busy = false;
  std::array<std::vector<int64_t>, 6> boards;  // until when what they count is under way
  std::array<Reason, 6> board_reasons{};
  int64_t copies = 0;  // when all LDGSTS so far are done

  void wait(int64_t until, Reason why) {
    if (until <= ready) return;
    ready = until;
    reason = why;
  }
  // Until at most `left` of a scoreboard's instructions are under way.
  void wait_for(int board, std::size_t left) {
    auto& times = boards[static_cast<std::size_t>(board)];
    if (times.size() <= left) return;
    std::sort(times.begin(), times.end());
    wait(times[times.size() - 1 - left], board_reasons[static_cast<std::size_t>(board)]);
    if (left == 0) times.clear();
  }
  void count(int board, int64_t until, Reason why) {
    boards[static_cast<std::size_t>(board)].push_back(until);
    board_reasons[static_cast<std::size_t>(board)] = why;
  }
  const Instruction& next(const Kernel& kernel) const {
    return kernel.code[static_cast<std::size_t>(warp->group().at)];
  }
};

class Scheduler {
 public:
  explicit Scheduler(const Kernel& kernel) : kernel_(&kernel) {}

  void add(Slot& slot) {
    slot.scheduler = this;
    slots_.push_back(&slot);
  }
  void remove(const Running& running) {
    const auto gone = [&](const Slot* slot) { return slot->running == &running; };
    slots_.erase(std::remove_if(slots_.begin(), slots_.end(), gone), slots_.end());
    last_ = nullptr;
  }

  // The warp that issues now, or null; then `next` becomes no later than when one may.
  Slot* choose(int64_t now, int64_t& next) {
    const auto can = [&](Slot* slot) {
      const int64_t free = slot->ready > now ? 0 : pipe_free(slot->next(*kernel_).pipe);
      if (slot->ready <= now && free <= now) return true;
      slot->pipe_was_busy = slot->pipe_was_busy || slot->ready <= now;
      next = std::min(next, std::max(slot->ready, free));
      return false;
    };
    if (last_ != nullptr && can(last_)) return last_;
    for (auto slot = slots_.rbegin(); slot != slots_.rend(); ++slot) {
      if (*slot != last_ && can(*slot)) return last_ = *slot;
    }
    return nullptr;
  }

  // A line of code that is fetched because the one before it was is there in time.
  void fetch(Slot& slot, bool jumped) {
    const int line = slot.warp->group().at / 8;
    const auto held = code_.find(line);
    if (jumped && held == code_.end()) slot.wait(slot.ready + H100::code_miss, kBranches);
    code_[line] = slot.ready;
    if (code_.size() <= H100::code_lines) return;
    code_.erase(std::min_element(code_.begin(), code_.end(),
                                 [](const auto& a, const auto& b) { return a.second < b.second; }));
  }

  // Keeps pipes busy and scoreboards up with an instruction that was issued.
  void take(Slot& slot, const Instruction& in, uint32_t lanes, const Access& access, int64_t now,
            Memory& memory, Outcome& out) {
    int64_t result = now + H100::vote, operands = now + H100::operands;
    Reason why = kShortBoard;
    const auto occupy = [&](int64_t& pipe, int cycles) {
      pipe = now + cycles;
      out.busy[static_cast<std::size_t>(in.pipe)] += cycles;
    };
    switch (in.pipe) {
      case Pipe::kFma:
        occupy(fma_ <= now ? fma_ : imad_, H100::fma);
        out.arithmetic += __builtin_popcount(lanes) / 128.0;
        break;
      case Pipe::kImad:
        occupy(imad_, H100::imad);
        break;
      case Pipe::kAlu:
        occupy(alu_, H100::alu);
        break;
      case Pipe::kFp64:
        occupy(fp64_, H100::fp64);
        out.arithmetic += __builtin_popcount(lanes) / 64.0;
        result = now + H100::fp64_result;
        break;
      case Pipe::kSpecial:
        occupy(special_, H100::special);
        result = now + H100::mufu;
        break;
      case Pipe::kUniform:
        occupy(uniform_, H100::uniform);
        break;
      case Pipe::kMemory: {
        const int64_t begin = std::max({now, memory_, memory.free() - H100::backlog});
        memory_ = begin + H100::memory;
        out.busy[static_cast<std::size_t>(in.pipe)] += H100::memory;
        const auto times = transfer(slot, in, access, begin, memory);
        result = times.result;
        operands = times.operands;
        if (access.global || in.code == kLdgdepbar || in.code == kMembar) why = kLongBoard;
        break;
      }
      case Pipe::kControl:
        break;
    }
    // LDGDEPBAR counts copies on the first scoreboard where it names none.
    const int board = in.code == kLdgdepbar && in.write == 7 ? 0 : in.write;
    if (board != 7) slot.count(board, result, why);
    if (in.read != 7) slot.count(in.read, operands, why);
  }

 private:
  static Memory::Times transfer(Slot& slot, const Instruction& in, const Access& access,
                                int64_t begin, Memory& memory) {
    const int64_t read = begin + H100::operands;
    switch (in.code) {
      case kShfl:
        return memory.shuffle(begin);
      case kLds:
      case kSts:
      case kLdg:
      case kStg:
        return memory.access(begin, access);
      case kLdgsts: {
        const auto times = memory.access(begin, access);
        slot.copies = std::max(slot.copies, times.result);
        return times;
      }
      case kLdgdepbar:
        return {std::max(begin, slot.copies), read};
      case kMembar:
        return {begin + H100::l2_hit, read};
      case kLdc:
        return {begin + H100::constant, read};
      default:
        return {begin + H100::system, read};
    }
  }

  int64_t pipe_free(Pipe pipe) const {
    switch (pipe) {
      case Pipe::kFma:
        return std::min(fma_, imad_);
      case Pipe::kImad:
        return imad_;
      case Pipe::kAlu:
        return alu_;
      case Pipe::kFp64:
        return fp64_;
      case Pipe::kSpecial:
        return special_;
      case Pipe::kUniform:
        return uniform_;
      case Pipe::kMemory:
        return memory_ - H100::queue * H100::memory;
      default:
        return 0;
    }
  }

  const Kernel* kernel_;
  std::vector<Slot*> slots_;
  Slot* last_ = nullptr;
  std::map<int, int64_t> code_;  // lines at hand, and when they were used last
  int64_t fma_ = 0, imad_ = 0, alu_ = 0, fp64_ = 0, special_ = 0, uniform_ = 0, memory_ = 0;
};

}  // namespace machine
