// Conversions, halves, and what goes from lane to lane, to memory and back.
#pragma once

#include "arithmetic.h"
#include "codes.h"

namespace machine {

// Addresses of a memory instruction: what its time depends on.
struct Access {
  bool load = false, shared = false, global = false;
  int bytes = 0;
  uint32_t lanes = 0;
  std::array<uint64_t, kLanes> address{};
};

// Arrays of the host in place of global memory.
class Arrays {
 public:
  void add(uint64_t begin, std::size_t bytes) { ends_[begin] = begin + bytes; }
  void remove(uint64_t begin) {
    ends_.erase(begin);
    begin_ = end_ = 0;
  }
  void* at(uint64_t address, int bytes, const Instruction& in) {
    if (address < begin_ || address + static_cast<uint64_t>(bytes) > end_) find(address, bytes, in);
    return reinterpret_cast<void*>(address);
  }

 private:
  void find(uint64_t address, int bytes, const Instruction& in) {
    auto after = ends_.upper_bound(address);
    if (after != ends_.begin()) {
      --after;
      if (address + static_cast<uint64_t>(bytes) <= after->second) {
        begin_ = after->first;
        end_ = after->second;
        return;
      }
    }
    std::ostringstream text;
    text << in.name << " at " << in.address << " (" << in.line << "): address " << std::hex
         << address << " lies in no array";
    throw Error(text.str());
  }
  std::map<uint64_t, uint64_t> ends_;
  uint64_t begin_ = 0, end_ = 0;
};

struct Block {
  std::vector<uint8_t> shared;
  std::array<uint32_t, 3> index{};
  std::array<uint32_t, 3> shape{};
  int threads = 0;
};

// value as a half, or a bfloat16, rounded once.
inline uint32_t half_word(double value, bool brain) {
  const float odd = emulation::double_to_float_odd(value);
  return brain ? emulation::float_to_bfloat16_bits(odd) : emulation::float_to_half_bits(odd);
}

inline void convert(Warp& w, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const std::string& to = in.modifiers.empty() ? in.base : in.modifiers[0];
  if (in.code == kI2f) {
    const bool from_64 = in.has("S64") || in.has("U64");
    const Wide wide = w.wide_integer(o[1]);
    const Lanes narrow = w.integer(o[1]);
    const auto all = [&](auto& d) {
      using T = std::decay_t<decltype(d[0])>;
      const auto cast = [](auto x) { return static_cast<T>(x); };
      for (int i = 0; i < kLanes; ++i) {
        const auto bits_64 = from_64 ? wide[i] : uint64_t{narrow[i]};
        const auto number =
            from_64 ? static_cast<int64_t>(wide[i]) : int64_t{static_cast<int32_t>(narrow[i])};
        d[i] = in.is_signed ? directed<T>(in.rounding, cast, number)
                            : directed<T>(in.rounding, cast, bits_64);
      }
      w.store(o[0], d, lanes);
    };
    Many<double> d;
    Many<float> f;
    return in.has("F64") ? all(d) : all(f);
  }
  if (in.code == kF2fp) {  // PACK_AB: a above b
    const auto a = w.real(o[1]), b = w.real(o[2]);
    const bool brain = to == "BF16";
    each(w, o[0], lanes,
         [&](int i) { return half_word(a[i], brain) << 16 | half_word(b[i], brain); });
    return;
  }
  // F2I, F2F, FRND: the source's type is named after the result's, if it is no float
  bool from_64 = false, from_half = false;
  std::size_t types = 0;
  for (const auto& name : in.modifiers) {
    if (name != "F16" && name != "BF16" && name != "F32" && name != "F64") continue;
    const bool of_source = in.code != kF2f || types++ == 1;
    from_64 = from_64 || (of_source && name == "F64");
    from_half = from_half || (of_source && name == "F16");
  }
  const auto wide = from_64 ? w.real64(o[1]) : Many<double>{};
  const auto narrow = w.real(o[1]);
  Many<double> x;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = from_64     ? wide[i]
           : from_half ? emulation::half_bits_to_float(bits<uint32_t>(narrow[i]) & 0xffff)
                       : double(narrow[i]);
  }
  if (in.code == kF2i) {
    const bool to_64 = in.has("U64") || in.has("S64");
    Wide d;
    for (int i = 0; i < kLanes; ++i) d[i] = to_integer(in, x[i], to_64);
    if (to_64) return w.store(o[0], d, lanes);
    return each(w, o[0], lanes, [&](int i) { return static_cast<uint32_t>(d[i]); });
  }
  if (in.code == kFrnd) {
    for (int i = 0; i < kLanes; ++i) x[i] = rounded(x[i], in.rounding);
    if (from_64) return w.store(o[0], x, lanes);
  } else if (to == "F64") {
    return w.store(o[0], x, lanes);
  }
  each(w, o[0], lanes, [&](int i) {
    if (to == "F16") return half_word(x[i], false);
    if (to == "BF16") return half_word(x[i], true);
    const auto cast = [](double y) { return static_cast<float>(y); };
    return bits<uint32_t>(directed<float>(in.rounding, cast, x[i]));
  });
}

// One half of an operand as a float.
inline Many<float> half_of(Warp& w, const Operand& o, bool upper, bool brain) {
  const Lanes raw = w.raw(o);
  if (o.flags & kUpper) upper = true;
  if (o.flags & kLower) upper = false;
  Many<float> out;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t h = upper ? raw[i] >> 16 : raw[i] & 0xffff;
    out[i] = brain ? bits<float>(h << 16) : emulation::half_bits_to_float(h);
    if (o.flags & kAbsolute) out[i] = std::fabs(out[i]);
    if (o.flags & kNegative) out[i] = -out[i];
  }
  return out;
}

inline void halves(Warp& w, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const bool brain = in.has("BF16_V2") || in.has("BF16");
  const auto both = [&](bool upper) {
    const auto a = half_of(w, o[1], upper, brain), b = half_of(w, o[2], upper, brain);
    Many<float> d;
    for (int i = 0; i < kLanes; ++i) d[i] = in.code == kHadd2 ? a[i] + b[i] : a[i] * b[i];
    if (in.code == kHfma2) {
      const auto c = half_of(w, o[3], upper, brain);
      for (int i = 0; i < kLanes; ++i) d[i] = std::fma(a[i], b[i], c[i]);
    }
    return d;
  };
  const auto low = both(false);
  if (in.has("F32")) return w.store(o[0], low, lanes);
  const auto high = both(true);
  each(w, o[0], lanes,
       [&](int i) { return half_word(high[i], brain) << 16 | half_word(low[i], brain); });
}

inline void vote(Warp& w, const Instruction& in, uint32_t lanes) {
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

inline void reduce(Warp& w, const Instruction& in, uint32_t lanes) {
  const Lanes a = w.integer(in.operands[1]);
  const bool is_or = in.has("OR"), is_sum = in.has("SUM"), is_and = in.has("AND");
  const bool is_max = in.has("MAX") && !in.has("S32");
  if (!is_or && !is_sum && !is_and && !is_max)
    throw Error(in.name + " is not known to the machine");
  uint32_t d = is_and ? ~0u : 0;
  for (int i = 0; i < kLanes; ++i) {
    if (lanes >> i & 1)
      d = is_max ? (a[i] > d ? a[i] : d) : is_or ? d | a[i] : is_and ? d & a[i] : d + a[i];
  }
  each(w, in.operands[0], lanes, [&](int) { return d; });
}

inline void system_register(Warp& w, const Instruction& in, uint32_t lanes) {
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

inline void load_constant(Warp& w, const Instruction& in, uint32_t lanes) {
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

inline void shuffle(Warp& w, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const Lanes a = w.integer(o[2]), b = w.integer(o[3]), c = w.integer(o[4]);
  const std::string& how = in.modifiers.at(0);
  Lanes d{};
  uint32_t valid = 0;
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    const int clamp = static_cast<int>(c[i] & 31), segment = static_cast<int>(c[i] >> 8 & 31);
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

inline void load(Warp& w, const Instruction& in, uint32_t lanes, Arrays& arrays, Access& access) {
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

inline void store(Warp& w, const Instruction& in, uint32_t lanes, Arrays& arrays, Access& access) {
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

// LDGSTS: from global to shared memory.
inline void copy(Warp& w, const Instruction& in, uint32_t lanes, Arrays& arrays, Access& access) {
  std::array<uint64_t, kLanes> to{};
  addresses(w, in.operands[0], lanes, false, to);
  begin_access(w, in, in.operands[1], lanes, access);
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    std::memcpy(shared_at(w, to[static_cast<std::size_t>(i)], in.bytes, in),
                place(w, in, arrays, access, i), static_cast<std::size_t>(in.bytes));
  }
}

}  // namespace machine
