// A launch, its blocks, and what control flow and barriers do to their warps.
#pragma once

#include <memory>
#include <utility>

#include "codes.h"
#include "h100.h"

namespace machine {

struct Launch {
  const Kernel* kernel = nullptr;
  std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1};
  int64_t shared = 0;  // dynamic
  Constants constants;
  int threads() const { return static_cast<int>(block[0] * block[1] * block[2]); }
  // Of a block, with the driver's.
  int64_t shared_bytes() const { return shared + kernel->shared + H100::shared_reserved; }
  int64_t blocks() const { return int64_t{grid[0]} * grid[1] * grid[2]; }
};

inline int resident_blocks(const Launch& launch) {
  const int warps = (launch.threads() + 31) / 32;
  const int unit = H100::register_unit, a_warp = launch.kernel->registers * kLanes;
  const int of_warp = (a_warp + unit - 1) / unit * unit;
  const int by_registers = H100::registers / H100::schedulers / of_warp * H100::schedulers / warps;
  const int64_t by_shared = H100::shared_size / ((launch.shared_bytes() + 127) / 128 * 128);
  return static_cast<int>(std::min<int64_t>(
      {int64_t{H100::blocks}, int64_t{H100::warps / warps}, int64_t{by_registers}, by_shared}));
}

// A block and its warps, from the launch until the last one ends.
struct Running {
  Block block;
  std::vector<std::unique_ptr<Warp>> warps;
  struct Barrier {
    int arrived = 0;
    int expected = 0;  // 0: all threads of the block
    uint32_t any = 0, all = ~0u;
    bool all_wanted = false;
    int count = 0;
  };
  std::map<int, Barrier> barriers;
  int alive = 0;  // threads

  Running(const Launch& launch, int64_t index) {
    block.shape = launch.block;
    block.threads = launch.threads();
    block.index = {static_cast<uint32_t>(index % launch.grid[0]),
                   static_cast<uint32_t>(index / launch.grid[0] % launch.grid[1]),
                   static_cast<uint32_t>(index / launch.grid[0] / launch.grid[1])};
    block.shared.assign(static_cast<std::size_t>(launch.shared_bytes()), 0xff);
    alive = block.threads;
    for (int first = 0; first < block.threads; first += kLanes) {
      auto w = std::make_unique<Warp>();
      const int lanes = std::min(kLanes, block.threads - first);
      w->exists = lanes == kLanes ? ~0u : (1u << lanes) - 1;
      w->ended = ~w->exists;
      w->groups.push_back({Group::kRuns, w->exists, 0, 0, 0});
      w->first_thread = first;
      w->block = &block;
      w->constants = &launch.constants;
      warps.push_back(std::move(w));
    }
  }
};

// Control flow: what becomes of the current group of lanes.
class Control {
 public:
  enum Effect { kNext, kTaken, kWaits, kArrives, kEnds };

  static Effect run(Warp& w, const Kernel& kernel, const Instruction& in, uint32_t lanes) {
    Group& g = w.group();
    const auto& o = in.operands;
    const int next = g.at + 1;
    switch (in.code) {
      case kBra:
        return branch(w, kernel, in, lanes);
      case kCall:
        g.at = kernel.at(static_cast<uint64_t>(o.back().value));
        return kTaken;
      case kRet: {
        const Lanes to = w.raw(o[0]);
        return jump(w, kernel, to, lanes);
      }
      case kBssy:
        for (int i = 0; i < kLanes; ++i) {
          if (g.lanes >> i & 1) w.meetings[static_cast<std::size_t>(o[0].index)][i] = g.lanes;
        }
        g.at = next;
        return kNext;
      case kBsync:
        g.at = next;
        g.state = Group::kMeets;
        g.meeting = o[0].index;
        return meet(w);
      case kBreak:
        return leave(w, in, lanes);
      case kBmov:
        return save_meeting(w, in, lanes);
      case kWarpsync:
        g.at = next;
        g.whom = in.has("ALL") ? ~0u : w.raw(o[0])[__builtin_ctz(g.lanes)];
        if ((g.whom & ~w.ended) == g.lanes) return kNext;
        g.state = Group::kGathers;
        return meet(w);
      case kExit:
        g.at = next;
        w.exit_lanes(lanes);
        return kEnds;
      default:
        g.at = next;
        return kNext;
    }
  }

 private:
  // Lanes that a meeting no longer waits for.
  static Effect leave(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    if (o.size() > 1) lanes &= w.predicate(o[0]);
    for (int i = 0; i < kLanes; ++i) {
      w.meetings[static_cast<std::size_t>(o.back().index)][i] &= ~lanes;
    }
    w.group().at += 1;
    w.release_meetings();
    return kNext;
  }
  // A meeting's register to an ordinary one, or back.
  static Effect save_meeting(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    w.group().at += 1;
    if (o[0].kind != 'b') {
      w.store(o[0], w.meetings[static_cast<std::size_t>(o[1].index)], lanes);
      return kNext;
    }
    const Lanes from = w.raw(o[1]);
    for (int i = 0; i < kLanes; ++i) {
      if (lanes >> i & 1) w.meetings[static_cast<std::size_t>(o[0].index)][i] = from[i];
    }
    return kNext;
  }
  static Effect meet(Warp& w) {
    const uint32_t mine = w.group().lanes;
    const std::size_t before = w.groups.size();
    w.release_meetings();
    for (std::size_t i = 0; i < w.groups.size(); ++i) {
      if ((w.groups[i].lanes & mine) && w.groups[i].state == Group::kRuns) {
        w.current = static_cast<int>(i);
        return before == w.groups.size() ? kNext : kTaken;
      }
    }
    return kWaits;
  }
  static Effect branch(Warp& w, const Kernel& kernel, const Instruction& in, uint32_t lanes) {
    Group& g = w.group();
    const auto& o = in.operands;
    const int to = kernel.at(static_cast<uint64_t>(o.back().value)), next = g.at + 1;
    if (in.has("DIV")) {
      const uint32_t whom = o[0].flags & kInverted ? ~w.scalar(o[0], 0) : w.scalar(o[0], 0);
      const bool apart = (whom & ~w.ended) != (g.lanes & ~w.ended);
      g.at = apart ? to : next;
      return apart ? kTaken : kNext;
    }
    if (o.size() > 1 && o[0].is_predicate()) lanes &= w.predicate(o[0]);
    lanes &= g.lanes;
    if (lanes == 0) {
      g.at = next;
      return kNext;
    }
    if (lanes != g.lanes) {
      Group other = g;
      other.lanes = lanes;
      other.at = to;
      g.lanes &= ~lanes;
      g.at = next;
      w.groups.push_back(other);
      return kNext;
    }
    g.at = to;
    return kTaken;
  }
  static Effect jump(Warp& w, const Kernel& kernel, const Lanes& to, uint32_t lanes) {
    const uint32_t target = to[__builtin_ctz(lanes)];
    uint32_t same = 0;
    for (int i = 0; i < kLanes; ++i) {
      if ((lanes >> i & 1) && to[i] == target) same |= 1u << i;
    }
    Group& g = w.group();
    if (same != g.lanes) {
      Group other = g;
      other.lanes &= ~same;
      g.lanes = same;
      w.groups.push_back(other);
    }
    w.group().at = kernel.at(target);
    return kTaken;
  }
};

// Carries out instructions of any kind.
class Stepper {
 public:
  explicit Stepper(Arrays& arrays) : arrays_(arrays) {}

  // The block whose threads were let through a barrier since this was asked last, or null.
  Running* released() { return std::exchange(released_, nullptr); }

  Control::Effect step(Running& running, Warp& w, const Kernel& kernel, const Instruction& in,
                       uint32_t lanes, Access& access) {
    if (in.code == kBar) return arrive(running, w, in, lanes);
    if (in.code < kBra) {
      Context context{w, arrays_};
      if (lanes != 0) in.run(context, in, lanes);
      access = context.access;
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
    const Control::Effect effect = Control::run(w, kernel, in, lanes);
    if (in.code == kExit) {
      running.alive -= __builtin_popcount(w.ended & ~before);
      for (auto& [id, barrier] : running.barriers) complete(running, id, barrier);
    }
    return effect;
  }

 private:
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

  Arrays& arrays_;
  Running* released_ = nullptr;
};

}  // namespace machine
