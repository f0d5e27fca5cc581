// What goes from lane to lane, to memory and back; system registers and constants.
#pragma once

#include <algorithm>

#include "context.h"

namespace machine {

inline void vote(Context& c, const Instruction& in, uint32_t lanes) {
  Warp& w = c.w;
  const uint32_t yes = w.predicate(in.operands.back()) & lanes;
  const bool all = in.has("ALL"), outcome = all ? yes == lanes : yes != 0;
  for (std::size_t i = 0; i + 1 < in.operands.size(); ++i) {
    const Operand& to = in.operands[i];
    if (to.is_predicate()) {
      w.set_predicate(to, outcome ? ~0u : 0u, lanes);
    } else {
      each(w, to, lanes, [&](int) { return yes; });
    }
  }
}

inline void reduce(Context& c, const Instruction& in, uint32_t lanes) {
  Warp& w = c.w;
  const Lanes a = w.integer(in.operands[1]);
  const std::string& how = in.modifiers.at(0);
  if ((how != "OR" && how != "AND" && how != "SUM" && how != "MAX") || in.has("S32")) {
    throw Error(in.name + " is not known to the machine");
  }
  uint32_t d = how == "AND" ? ~0u : 0;
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    d = how == "MAX"   ? std::max(a[i], d)
        : how == "OR"  ? d | a[i]
        : how == "AND" ? d & a[i]
                       : d + a[i];
  }
  each(w, in.operands[0], lanes, [&](int) { return d; });
}

inline void barrier_result(Context& c, const Instruction& in, uint32_t lanes) {
  c.w.set_predicate(in.operands.back(), c.w.vote, lanes);
  const auto count = static_cast<uint32_t>(c.w.vote_count);
  each(c.w, in.operands[0], lanes, [&](int) { return count; });
}

inline void system_register(Context& c, const Instruction& in, uint32_t lanes) {
  Warp& w = c.w;
  const int which = in.operands[1].index;  // in the order of SPECIAL in tools/sass.py
  const auto& shape = w.block->shape;
  each(w, in.operands[0], lanes, [&](int i) -> uint32_t {
    const auto t = static_cast<uint32_t>(w.first_thread + i);
    switch (which) {
      case 0:
        return t % shape[0];
      case 1:
        return t / shape[0] % shape[1];
      case 2:
        return t / (shape[0] * shape[1]);
      case 3:
      case 4:
      case 5:
        return w.block->index[static_cast<std::size_t>(which - 3)];
      case 6:
        return static_cast<uint32_t>(i);
      case 7:
      case 8:
      case 9:
        return 0;  // rank in the cluster, clock, zero
      case 10:
        return (2u << i) - 1;
      case 11:
        return (1u << i) - 1;
      case 12:
        return ~((1u << i) - 1);
      case 13:
        return ~((2u << i) - 1);
      case 14:
        return 1u << i;
      default:
        throw Error(in.name + " (" + in.line + "): a system register that is not known");
    }
  });
}

inline void load_constant(Context& c, const Instruction& in, uint32_t lanes) {
  Warp& w = c.w;
  const Operand& from = in.operands[1];
  Operand by = from;
  by.kind = 'r';
  by.flags = 0;
  const Lanes registers = w.raw(by);
  const int bank = from.extra / 64;
  for (int word = 0; word < (in.bytes + 3) / 4; ++word) {
    Lanes d{};
    for (int i = 0; i < kLanes; ++i) {
      if ((lanes >> i & 1) == 0) continue;
      const int64_t at = w.constant_offset(from) + registers[i] + 4 * word;
      if (in.bytes == 1) {
        const auto byte = w.constants->load<uint8_t>(bank, at);
        d[i] = in.is_signed ? static_cast<uint32_t>(static_cast<int8_t>(byte)) : byte;
      } else if (in.bytes == 2) {
        const auto half = w.constants->load<uint16_t>(bank, at);
        d[i] = in.is_signed ? static_cast<uint32_t>(static_cast<int16_t>(half)) : half;
      } else {
        d[i] = w.constants->load<uint32_t>(bank, at);
      }
    }
    w.store(in.operands[0], d, lanes, word);
  }
}

inline void shuffle(Context& c, const Instruction& in, uint32_t lanes) {
  Warp& w = c.w;
  const auto& o = in.operands;
  const Lanes a = w.integer(o[2]), b = w.integer(o[3]), limits = w.integer(o[4]);
  const std::string& how = in.modifiers.at(0);
  Lanes d{};
  uint32_t valid = 0;
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    const int clamp = static_cast<int>(limits[i] & 31),
              segment = static_cast<int>(limits[i] >> 8 & 31);
    const int least = i & segment, most = least | (clamp & ~segment);
    const int step = static_cast<int>(b[i] & 31);
    int from = i;
    bool fits = true;
    if (how == "IDX") {
      from = least | (step & ~segment);
      fits = from <= most;
    } else if (how == "UP") {
      from = i - step;
      fits = from >= most;
    } else if (how == "DOWN") {
      from = i + step;
      fits = from <= most;
    } else {
      from = i ^ step;
      fits = from <= most;
    }
    if (!fits) from = i;
    if ((lanes >> from & 1) == 0) {
      throw Error(in.name + " (" + in.line + "): reads lane " + std::to_string(from) +
                  ", which does not take part");
    }
    d[i] = a[from];
    valid |= uint32_t{fits} << i;
  }
  w.store(o[1], d, lanes);
  w.set_predicate(o[0], valid, lanes);
}

// --- memory
// ----------------------------------------------------------------------------------------

// Where operand `o` points in every lane.
inline void addresses(Warp& w, const Operand& o, uint32_t lanes, bool global,
                      std::array<uint64_t, kLanes>& out) {
  Operand by = o;
  by.kind = 'r';
  by.flags = 0;
  const bool pair = o.flags & kWide;
  const Lanes low = w.raw(by), high = pair ? w.raw(by, 1) : Lanes{};
  uint64_t uniform = 0;
  if (o.extra != kZeroUniform) {
    const auto u = static_cast<std::size_t>(o.extra);
    uniform = w.uniforms[u];
    if (global) uniform |= uint64_t{w.uniforms[u + 1]} << 32;
  }
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    uint64_t at = (uint64_t{high[i]} << 32 | low[i]) + uniform + static_cast<uint64_t>(o.value);
    if (!global) at &= 0xffffffffu;
    out[static_cast<std::size_t>(i)] = at;
  }
}

inline uint8_t* shared_at(Warp& w, uint64_t at, int bytes, const Instruction& in) {
  auto& memory = w.block->shared;
  if (at + static_cast<uint64_t>(bytes) > memory.size() || at % static_cast<uint64_t>(bytes) != 0) {
    throw Error(in.name + " at " + std::to_string(in.address) + " (" + in.line +
                "): shared address " + std::to_string(at) + " of " + std::to_string(memory.size()));
  }
  return memory.data() + at;
}

inline void begin_access(Warp& w, const Instruction& in, const Operand& where, uint32_t lanes,
                         Access& access) {
  access.shared = in.code == kLds || in.code == kSts;
  access.global = !access.shared;
  access.load = in.code == kLds || in.code == kLdg || in.code == kLdgsts;
  access.bytes = in.bytes;
  access.lanes = lanes;
  addresses(w, where, lanes, access.global, access.address);
}

inline uint8_t* place(Warp& w, const Instruction& in, Arrays& arrays, const Access& access, int i) {
  const uint64_t at = access.address[static_cast<std::size_t>(i)];
  if (access.shared) return shared_at(w, at, in.bytes, in);
  return static_cast<uint8_t*>(arrays.at(at, in.bytes, in));
}

inline void load(Context& context, const Instruction& in, uint32_t lanes) {
  auto& [w, arrays, access] = context;
  begin_access(w, in, in.operands.back(), lanes, access);
  std::array<Lanes, 4> d{};
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    const uint8_t* const from = place(w, in, arrays, access, i);
    if (in.bytes >= 4) {
      for (int word = 0; word < in.bytes / 4; ++word) {
        std::memcpy(&d[static_cast<std::size_t>(word)][i], from + 4 * word, 4);
      }
    } else {
      std::memcpy(&d[0][i], from, static_cast<std::size_t>(in.bytes));
      const int unused = 32 - 8 * in.bytes;
      if (in.is_signed) {
        d[0][i] = static_cast<uint32_t>(static_cast<int32_t>(d[0][i] << unused) >> unused);
      }
    }
  }
  for (int word = 0; word < (in.bytes + 3) / 4; ++word) {
    w.store(in.operands[0], d[static_cast<std::size_t>(word)], lanes, word);
  }
}

inline void store(Context& context, const Instruction& in, uint32_t lanes) {
  auto& [w, arrays, access] = context;
  begin_access(w, in, in.operands[0], lanes, access);
  for (int word = 0; word < (in.bytes + 3) / 4; ++word) {
    const Lanes d = w.raw(in.operands[1], word);
    for (int i = 0; i < kLanes; ++i) {
      if ((lanes >> i & 1) == 0) continue;
      uint8_t* const to = place(w, in, arrays, access, i) + 4 * word;
      std::memcpy(to, &d[i], static_cast<std::size_t>(in.bytes < 4 ? in.bytes : 4));
    }
  }
}

// LDGSTS: from global to shared memory; zeros, and nothing is read, where the last operand, a
// predicate, is false.
inline void copy(Context& context, const Instruction& in, uint32_t lanes) {
  auto& [w, arrays, access] = context;
  const uint32_t present = in.operands.size() > 2 ? lanes & w.predicate(in.operands[2]) : lanes;
  std::array<uint64_t, kLanes> to{};
  addresses(w, in.operands[0], lanes, false, to);
  begin_access(w, in, in.operands[1], present, access);
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    uint8_t* const at = shared_at(w, to[static_cast<std::size_t>(i)], in.bytes, in);
    const auto bytes = static_cast<std::size_t>(in.bytes);
    if ((present >> i & 1) == 0) {
      std::memset(at, 0, bytes);
    } else {
      std::memcpy(at, place(w, in, arrays, access, i), bytes);
    }
  }
}

}  // namespace machine
