// A warp: registers of 32 lanes, predicates, and the groups of lanes that go separate ways.
#pragma once

#include <bitset>
#include <cstring>

#include "program.h"

namespace machine {

constexpr int kLanes = 32;
template <class T>
struct alignas(64) Many {
  T v[kLanes];
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};
using Lanes = Many<uint32_t>;
using Wide = Many<uint64_t>;

template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Constant bank 0: sizes of the launch, then the kernel's parameters.
struct Constants {
  static constexpr int kParameters = 0x210;
  std::vector<uint8_t> bytes = std::vector<uint8_t>(kParameters + 4096, 0);
  template <class T>
  T load(int bank, int64_t at) const {
    if (bank != 0) throw Error("expected constant bank 0, got " + std::to_string(bank));
    if (at < 0 || at + sizeof(T) > bytes.size()) throw Error("constant out of bounds");
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    return value;
  }
};

struct Group {
  enum State { kRuns, kMeets, kGathers, kBarrier } state = kRuns;
  uint32_t lanes = 0;
  int at = 0;         // index of the next instruction
  int meeting = 0;    // register of the BSYNC
  uint32_t whom = 0;  // lanes that a BSYNC or WARPSYNC waits for
};

struct Block;

struct Warp {
  std::vector<Lanes> registers = std::vector<Lanes>(256);
  std::array<uint32_t, 64> uniforms{};
  std::array<uint32_t, 8> predicates{};  // a bit a lane
  std::array<bool, 8> uniform_predicates{};
  std::array<Lanes, 16> meetings{};  // by lane: whom a BSYNC waits for
  std::vector<Group> groups;
  int current = 0;
  uint32_t ended = 0, exists = 0;
  int first_thread = 0;
  Block* block = nullptr;
  const Constants* constants = nullptr;
  uint32_t vote = 0;  // what a barrier with a vote found
  int vote_count = 0;

  Group& group() { return groups[static_cast<std::size_t>(current)]; }
  bool done() const { return groups.empty(); }

  uint32_t guard(const Instruction& in) const {
    uint32_t lanes;
    if (in.guard & 8) {
      const int p = in.guard & 7;
      lanes = p == kTrue || uniform_predicates[static_cast<std::size_t>(p)] ? ~0u : 0u;
    } else {
      const int p = in.guard & 7;
      lanes = p == kTrue ? ~0u : predicates[static_cast<std::size_t>(p)];
    }
    return in.guard & 16 ? ~lanes : lanes;
  }

  // --- operands ----------------------------------------------------------------------------------

  uint32_t predicate(const Operand& o) const {
    uint32_t lanes = ~0u;
    if (o.index != kTrue) {
      lanes = o.kind == 'p' ? predicates[static_cast<std::size_t>(o.index)]
              : uniform_predicates[static_cast<std::size_t>(o.index)] ? ~0u
                                                                      : 0u;
    }
    return o.flags & kNot ? ~lanes : lanes;
  }
  void set_predicate(const Operand& o, uint32_t value, uint32_t lanes) {
    if (!o.is_predicate()) throw Error("expected a predicate to write");
    if (o.index == kTrue) return;
    if (o.kind == 'q') {
      if (lanes != 0) uniform_predicates[static_cast<std::size_t>(o.index)] = (value & lanes) != 0;
    } else {
      uint32_t& p = predicates[static_cast<std::size_t>(o.index)];
      p = (p & ~lanes) | (value & lanes);
    }
  }

  // extra is 64 bank + the uniform register of the address
  int64_t constant_offset(const Operand& o) const {
    const int u = o.extra % 64;
    return o.value + (u == kZeroUniform ? 0 : uniforms[static_cast<std::size_t>(u)]);
  }
  uint32_t scalar(const Operand& o, int word) const {
    if (o.kind == 'i') return word == 0 ? static_cast<uint32_t>(o.value) : 0;
    if (o.kind == 'u') {
      const int i = o.index == kZeroUniform ? -1 : o.index + word;
      return i < 0 ? 0 : uniforms[static_cast<std::size_t>(i)];
    }
    if (o.kind == 'c') {
      if (o.index != kZeroRegister) throw Error("constant by a register outside of LDC");
      return constants->load<uint32_t>(o.extra / 64, constant_offset(o) + 4 * word);
    }
    throw Error(std::string("expected a number, got operand of kind ") + o.kind);
  }

  // Bits as they are, without sign and magnitude.
  Lanes raw(const Operand& o, int word = 0) const {
    if (o.kind == 'r') {
      if (o.index == kZeroRegister) return {};
      return registers[static_cast<std::size_t>(o.index + word)];
    }
    Lanes out;
    const uint32_t value = scalar(o, word);
    for (int i = 0; i < kLanes; ++i) out[i] = value;
    return out;
  }
  Lanes integer(const Operand& o) const {
    Lanes out = raw(o);
    if (o.flags & kInverted) {
      for (int i = 0; i < kLanes; ++i) out[i] = ~out[i];
    }
    if (o.flags & kAbsolute) {
      for (int i = 0; i < kLanes; ++i) out[i] = out[i] >> 31 ? 0 - out[i] : out[i];
    }
    if (o.flags & kNegative) {
      for (int i = 0; i < kLanes; ++i) out[i] = 0 - out[i];
    }
    return out;
  }
  Wide wide_integer(const Operand& o) const {
    const Lanes low = raw(o, 0), high = raw(o, 1);
    Wide out;
    for (int i = 0; i < kLanes; ++i) out[i] = low[i] | uint64_t{high[i]} << 32;
    if (o.flags & kInverted) {
      for (int i = 0; i < kLanes; ++i) out[i] = ~out[i];
    }
    if (o.flags & kNegative) {
      for (int i = 0; i < kLanes; ++i) out[i] = 0 - out[i];
    }
    return out;
  }
  Many<float> real(const Operand& o) const {
    Lanes out = raw(o);
    if (o.flags & kAbsolute) {
      for (int i = 0; i < kLanes; ++i) out[i] &= 0x7fffffffu;
    }
    if (o.flags & kNegative) {
      for (int i = 0; i < kLanes; ++i) out[i] ^= 0x80000000u;
    }
    return bits<Many<float>>(out);
  }
  Many<double> real64(const Operand& o) const {
    Wide out;
    if (o.kind == 'i') {
      for (int i = 0; i < kLanes; ++i) out[i] = static_cast<uint64_t>(o.value) << 32;
    } else {
      const Lanes low = raw(o, 0), high = raw(o, 1);
      for (int i = 0; i < kLanes; ++i) out[i] = low[i] | uint64_t{high[i]} << 32;
    }
    if (o.flags & kAbsolute) {
      for (int i = 0; i < kLanes; ++i) out[i] &= ~(uint64_t{1} << 63);
    }
    if (o.flags & kNegative) {
      for (int i = 0; i < kLanes; ++i) out[i] ^= uint64_t{1} << 63;
    }
    return bits<Many<double>>(out);
  }

  void store(const Operand& o, const Lanes& value, uint32_t lanes, int word = 0) {
    if (o.kind == 'u') {
      if (o.index != kZeroUniform && lanes != 0) {
        uniforms[static_cast<std::size_t>(o.index + word)] = value[__builtin_ctz(lanes)];
      }
      return;
    }
    if (o.kind != 'r') throw Error("expected a register to write");
    if (o.index == kZeroRegister) return;
    Lanes& to = registers[static_cast<std::size_t>(o.index + word)];
    if (lanes == ~0u) {
      to = value;
      return;
    }
    for (int i = 0; i < kLanes; ++i) to[i] = lanes >> i & 1 ? value[i] : to[i];
  }
  void store(const Operand& o, const Many<float>& value, uint32_t lanes) {
    store(o, bits<Lanes>(value), lanes);
  }
  void store(const Operand& o, const Wide& value, uint32_t lanes) {
    Lanes low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = static_cast<uint32_t>(value[i]);
      high[i] = static_cast<uint32_t>(value[i] >> 32);
    }
    store(o, low, lanes, 0);
    store(o, high, lanes, 1);
  }
  void store(const Operand& o, const Many<double>& value, uint32_t lanes) {
    store(o, bits<Wide>(value), lanes);
  }

  // --- groups ------------------------------------------------------------------------------------

  // Lets groups that wait for each other go on as one; returns whether any did.
  bool release_meetings() {
    bool any = false;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const Group& g = groups[i];
      if (g.state != Group::kMeets && g.state != Group::kGathers) continue;
      const uint32_t whom = awaited(g);
      uint32_t there = 0;
      for (const Group& other : groups) {
        if (same_meeting(g, other)) there |= other.lanes;
      }
      if ((whom & ~there) != 0) continue;
      Group merged = g;
      merged.lanes = there;
      merged.state = Group::kRuns;
      std::vector<Group> rest;
      const Group running = current < static_cast<int>(groups.size()) ? group() : Group{};
      for (const Group& other : groups) {
        if (!same_meeting(g, other)) rest.push_back(other);
      }
      rest.push_back(merged);
      groups = rest;
      current = static_cast<int>(groups.size()) - 1;
      for (std::size_t k = 0; k < groups.size(); ++k) {
        if (running.state == Group::kRuns && (groups[k].lanes & running.lanes) != 0) {
          current = static_cast<int>(k);
        }
      }
      any = true;
      i = static_cast<std::size_t>(-1);
    }
    return any;
  }

  // Makes a group that runs the current one; false if there is none.
  bool pick() {
    if (!groups.empty() && current < static_cast<int>(groups.size()) &&
        group().state == Group::kRuns) {
      return true;
    }
    for (std::size_t i = 0; i < groups.size(); ++i) {
      if (groups[i].state == Group::kRuns) {
        current = static_cast<int>(i);
        return true;
      }
    }
    return false;
  }

  void exit_lanes(uint32_t lanes) {
    ended |= lanes;
    group().lanes &= ~lanes;
    if (group().lanes == 0) {
      groups.erase(groups.begin() + current);
      current = 0;
    }
    release_meetings();
  }

 private:
  uint32_t awaited(const Group& g) const {
    if (g.state == Group::kGathers) return g.whom & ~ended & exists;
    const int lane = __builtin_ctz(g.lanes);
    return meetings[static_cast<std::size_t>(g.meeting)][lane] & ~ended;
  }
  bool same_meeting(const Group& g, const Group& other) const {
    if (other.state != g.state) return false;
    if (g.state == Group::kGathers) return other.whom == g.whom;
    return other.meeting == g.meeting && awaited(other) == awaited(g);
  }
};

// Stores f(lane) in every lane of `lanes`.
template <class F>
void each(Warp& w, const Operand& to, uint32_t lanes, const F& f) {
  Lanes d;
  for (int i = 0; i < kLanes; ++i) d[i] = f(i);
  w.store(to, d, lanes);
}

}  // namespace machine
