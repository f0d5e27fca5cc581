// Integers, bits and predicates. Every function is an instruction; operands in SASS's order.
#pragma once

#include "arithmetic.h"
#include "context.h"

namespace machine {

inline void move(Context& c, const Instruction& in, uint32_t lanes) {
  c.w.store(in.operands[0], c.w.integer(in.operands[1]), lanes);
}

template <class F>
void binary(Context& c, const Instruction& in, uint32_t lanes, const F& f) {
  const Lanes a = c.w.integer(in.operands[1]), b = c.w.integer(in.operands[2]);
  each(c.w, in.operands[0], lanes, [&](int i) { return f(a[i], b[i]); });
}

template <class F>
void unary(Context& c, const Instruction& in, uint32_t lanes, const F& f) {
  const Lanes a = c.w.integer(in.operands.back());
  each(c.w, in.operands[0], lanes, [&](int i) { return f(a[i]); });
}

inline void select(Context& c, const Instruction& in, uint32_t lanes) {
  const Lanes a = c.w.integer(in.operands[1]), b = c.w.integer(in.operands[2]);
  const uint32_t p = c.w.predicate(in.operands[3]);
  each(c.w, in.operands[0], lanes, [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
}

// f(lane) and its opposite, with another predicate, into two predicates.
template <class F>
void set(Context& c, const Instruction& in, uint32_t lanes, const F& f) {
  const auto& o = in.operands;
  uint32_t yes = 0;
  for (int i = 0; i < kLanes; ++i) yes |= uint32_t{f(i)} << i;
  const uint32_t with = c.w.predicate(o[4]);
  c.w.set_predicate(o[0], logic(in.logic, yes, with), lanes);
  c.w.set_predicate(o[1], logic(in.logic, ~yes, with), lanes);
}

inline void compare_integers(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const Lanes a = c.w.integer(o[2]), b = c.w.integer(o[3]);
  const uint32_t low = in.extended ? c.w.predicate(o[5]) : 0;
  set(c, in, lanes, [&](int i) {
    const auto sa = static_cast<int32_t>(a[i]), sb = static_cast<int32_t>(b[i]);
    if (!in.extended) {
      return in.is_signed ? compare(in.compare, false, sa, sb)
                          : compare(in.compare, false, a[i], b[i]);
    }
    const bool lower = low >> i & 1;
    return in.is_signed ? compare_upper(in.compare, sa, sb, lower)
                        : compare_upper(in.compare, a[i], b[i], lower);
  });
}

// Where sources begin, after the destination and the predicates that take carries.
inline std::size_t sources(const Instruction& in) {
  std::size_t first = 1;
  while (in.operands[first].is_predicate()) ++first;
  return first;
}
// A source as a number of up to 33 bits: minus x is ~x + 1, whose carry counts.
inline uint64_t addend(uint32_t raw, const Operand& o) {
  if (o.flags & kInverted) return static_cast<uint32_t>(~raw);
  return o.flags & kNegative ? uint64_t{static_cast<uint32_t>(~raw)} + 1 : raw;
}
inline uint64_t carry(const Warp& w, const Instruction& in, std::size_t at, int lane) {
  if (!in.extended || at >= in.operands.size()) return 0;
  return w.predicate(in.operands[at]) >> lane & 1;
}

inline void add(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const std::size_t s = sources(in);
  const Lanes x = c.w.raw(o[s]), y = c.w.raw(o[s + 1]), z = c.w.raw(o[s + 2]);
  std::array<uint32_t, 2> out{};
  Lanes d;
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t sum = addend(x[i], o[s]) + addend(y[i], o[s + 1]) + addend(z[i], o[s + 2]) +
                         carry(c.w, in, s + 3, i) + carry(c.w, in, s + 4, i);
    d[i] = static_cast<uint32_t>(sum);
    out[0] |= uint32_t{sum >> 32 >= 1} << i;
    out[1] |= uint32_t{sum >> 32 >= 2} << i;
  }
  c.w.store(o[0], d, lanes);
  for (std::size_t k = 1; k < s; ++k) c.w.set_predicate(o[k], out[k - 1], lanes);
}

inline void add_two(Context& c, const Instruction& in, uint32_t lanes) {
  binary(c, in, lanes, [](uint32_t a, uint32_t b) { return a + b; });
}

// IMAD.WIDE and IMAD.HI: a product of 64 bits and a sum.
inline void wide_multiply_add(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const std::size_t s = sources(in);
  const Lanes a = c.w.integer(o[s]), b = c.w.integer(o[s + 1]);
  const Wide z = c.w.wide_integer(o[s + 2]);
  Wide d;
  uint32_t out = 0;
  for (int i = 0; i < kLanes; ++i) {
    const auto sa = int64_t{static_cast<int32_t>(a[i])}, sb = int64_t{static_cast<int32_t>(b[i])};
    const uint64_t product = in.is_signed ? static_cast<uint64_t>(sa * sb) : uint64_t{a[i]} * b[i];
    const uint64_t carried = carry(c.w, in, s + 3, i);
    d[i] = product + z[i];
    bool over = d[i] < product;
    d[i] += carried;
    over = over || (carried != 0 && d[i] == 0);
    out |= uint32_t{over} << i;
  }
  if (in.high) {
    each(c.w, o[0], lanes, [&](int i) { return static_cast<uint32_t>(d[i] >> 32); });
  } else {
    c.w.store(o[0], d, lanes);
  }
  if (s > 1) c.w.set_predicate(o[1], out, lanes);
}

inline void multiply_add(Context& c, const Instruction& in, uint32_t lanes) {
  if (in.wide || in.high) return wide_multiply_add(c, in, lanes);
  const auto& o = in.operands;
  const std::size_t s = sources(in);
  const Lanes x = c.w.integer(o[s]), y = c.w.integer(o[s + 1]), z = c.w.integer(o[s + 2]);
  each(c.w, o[0], lanes,
       [&](int i) { return x[i] * y[i] + z[i] + static_cast<uint32_t>(carry(c.w, in, s + 3, i)); });
}

inline void shifted_add(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const std::size_t s = sources(in);
  const bool has_upper = in.high && !in.narrow;
  const Lanes a = c.w.integer(o[s]), b = c.w.raw(o[s + 1]);
  const Lanes upper = has_upper ? c.w.integer(o[s + 2]) : Lanes{};
  const std::size_t at = s + 2 + has_upper;
  const auto count = static_cast<int>(o[at].value);
  uint32_t out = 0;
  Lanes d;
  for (int i = 0; i < kLanes; ++i) {
    uint64_t both = uint64_t{upper[i]} << 32 | a[i];
    if (in.narrow) both = static_cast<uint64_t>(int64_t{static_cast<int32_t>(a[i])});
    both <<= count;
    const auto part = static_cast<uint32_t>(in.high ? both >> 32 : both);
    const uint64_t sum = part + addend(b[i], o[s + 1]) + carry(c.w, in, at + 1, i);
    d[i] = static_cast<uint32_t>(sum);
    out |= uint32_t{sum >> 32 != 0} << i;
  }
  c.w.store(o[0], d, lanes);
  if (s > 1) c.w.set_predicate(o[1], out, lanes);
}

inline void shift(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const bool left = in.has("L");
  const Lanes a = c.w.integer(o[1]), n = c.w.integer(o[2]), b = c.w.integer(o[3]);
  each(c.w, o[0], lanes, [&](int i) { return funnel(in, left, a[i], n[i], b[i]); });
}

inline void logic3(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const std::size_t s = o[0].is_predicate() ? 2 : 1;
  const Lanes x = c.w.integer(o[s]), y = c.w.integer(o[s + 1]), z = c.w.integer(o[s + 2]);
  const auto table = static_cast<uint32_t>(o[s + 3].value);
  Lanes d;
  uint32_t any = 0;
  for (int i = 0; i < kLanes; ++i) {
    d[i] = lookup3(x[i], y[i], z[i], table);
    any |= uint32_t{d[i] != 0} << i;
  }
  c.w.store(o[s - 1], d, lanes);
  if (s == 2) c.w.set_predicate(o[0], any | c.w.predicate(o[s + 4]), lanes);
}

inline void predicate_logic3(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const uint32_t x = c.w.predicate(o[2]), y = c.w.predicate(o[3]), z = c.w.predicate(o[4]);
  const uint32_t first = lookup3(x, y, z, static_cast<uint32_t>(o[5].value));
  const uint32_t second = lookup3(x, y, z, static_cast<uint32_t>(o[6].value));
  c.w.set_predicate(o[0], first, lanes);
  c.w.set_predicate(o[1], second, lanes);
}

inline void absolute(Context& c, const Instruction& in, uint32_t lanes) {
  unary(c, in, lanes, [](uint32_t x) { return x >> 31 ? 0 - x : x; });
}

// The least or the greatest of two; of VIADDMNMX the first is a sum.
inline void minimum(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const bool adds = o.size() == 5;
  Lanes a = c.w.integer(o[1]), b = c.w.integer(o[2]);
  if (adds) {
    for (int i = 0; i < kLanes; ++i) a[i] += b[i];
    b = c.w.integer(o[3]);
  }
  const uint32_t least = c.w.predicate(o.back());
  each(c.w, o[0], lanes, [&](int i) {
    const bool less =
        in.is_signed ? static_cast<int32_t>(a[i]) < static_cast<int32_t>(b[i]) : a[i] < b[i];
    return less == ((least >> i & 1) != 0) ? a[i] : b[i];
  });
}

inline void minimum_of_three(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const Lanes first = c.w.integer(o[1]), second = c.w.integer(o[2]), third = c.w.integer(o[3]);
  const uint32_t least = c.w.predicate(o.back());
  const auto of_two = [&](uint32_t a, uint32_t b, bool smaller) {
    const bool less = in.is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
    return less == smaller ? a : b;
  };
  each(c.w, o[0], lanes, [&](int i) {
    const bool smaller = (least >> i & 1) != 0;
    return of_two(of_two(first[i], second[i], smaller), third[i], smaller);
  });
}

inline void permute(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const Lanes a = c.w.integer(o[1]), s = c.w.integer(o[2]), b = c.w.integer(o[3]);
  each(c.w, o[0], lanes, [&](int i) { return permuted(a[i], s[i], b[i]); });
}

inline void count_ones(Context& c, const Instruction& in, uint32_t lanes) {
  unary(c, in, lanes, [](uint32_t x) { return static_cast<uint32_t>(__builtin_popcount(x)); });
}

inline void find_leading(Context& c, const Instruction& in, uint32_t lanes) {
  unary(c, in, lanes, [&](uint32_t raw) {
    const uint32_t x = in.is_signed && raw >> 31 ? ~raw : raw;
    if (x == 0) return ~0u;
    const auto leading = static_cast<uint32_t>(__builtin_clz(x));
    return in.has("SH") ? leading : 31 - leading;
  });
}

inline void reverse(Context& c, const Instruction& in, uint32_t lanes) {
  unary(c, in, lanes, [](uint32_t x) {
    uint32_t out = 0;
    for (int k = 0; k < 32; ++k) out |= (x >> k & 1) << (31 - k);
    return out;
  });
}

inline void extend_sign(Context& c, const Instruction& in, uint32_t lanes) {
  binary(c, in, lanes, [&](uint32_t a, uint32_t width) {
    if (width >= 32 || width == 0) return width >= 32 ? a : 0u;
    const uint32_t low = a & ((1u << width) - 1);
    return in.is_signed && (low >> (width - 1)) ? low | ~0u << width : low;
  });
}

inline void bit_mask(Context& c, const Instruction& in, uint32_t lanes) {
  binary(c, in, lanes, [](uint32_t first, uint32_t count) {
    const uint64_t ones = (uint64_t{1} << (count > 32 ? 32 : count)) - 1;
    return first >= 32 ? 0u : static_cast<uint32_t>(ones << first);
  });
}

inline void predicates_to_register(Context& c, const Instruction& in, uint32_t lanes) {
  const Lanes a = c.w.integer(in.operands[2]);
  const auto mask = static_cast<uint32_t>(in.operands[3].value);
  each(c.w, in.operands[0], lanes, [&](int i) {
    uint32_t p = 0;
    for (std::size_t k = 0; k < 7; ++k) p |= (c.w.predicates[k] >> i & 1) << k;
    return (p & mask) | (a[i] & ~mask);
  });
}

inline void register_to_predicates(Context& c, const Instruction& in, uint32_t lanes) {
  const Lanes a = c.w.integer(in.operands[1]);
  const auto mask = static_cast<uint32_t>(in.operands[2].value);
  for (int k = 0; k < 7; ++k) {
    if ((mask >> k & 1) == 0) continue;
    uint32_t value = 0;
    for (int i = 0; i < kLanes; ++i) value |= (a[i] >> k & 1) << i;
    c.w.set_predicate({'p', k, 0, 0, 0}, value, lanes);
  }
}

inline void register_to_uniform(Context& c, const Instruction& in, uint32_t lanes) {
  c.w.store(in.operands[0], c.w.integer(in.operands.back()), lanes);
}

// CS2R of what is zero, or of a clock that stands still.
inline void zero(Context& c, const Instruction& in, uint32_t lanes) {
  c.w.store(in.operands[0], Lanes{}, lanes, 0);
  if (!in.has("32")) c.w.store(in.operands[0], Lanes{}, lanes, 1);
}

}  // namespace machine
