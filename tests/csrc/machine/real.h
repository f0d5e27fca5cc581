// Floating point: float, double, half and bfloat16, and conversions. Every function is an
// instruction.
#pragma once

#include "integer.h"

namespace machine {

// --- float
// -----------------------------------------------------------------------------------------

inline void finish(Context& c, const Instruction& in, uint32_t lanes, Many<float>& d) {
  if (in.flush) {
    for (int i = 0; i < kLanes; ++i) d[i] = flushed(d[i]);
  }
  if (in.has("SAT")) {
    for (int i = 0; i < kLanes; ++i) d[i] = std::fmin(std::fmax(d[i], 0.0f), 1.0f);
  }
  c.w.store(in.operands[0], d, lanes);
}

inline void add_float(Context& c, const Instruction& in, uint32_t lanes) {
  auto d = c.w.real(in.operands[1]);
  const auto b = c.w.real(in.operands[2]);
  for (int i = 0; i < kLanes; ++i) d[i] += b[i];
  finish(c, in, lanes, d);
}

inline void multiply_float(Context& c, const Instruction& in, uint32_t lanes) {
  auto d = c.w.real(in.operands[1]);
  const auto b = c.w.real(in.operands[2]);
  for (int i = 0; i < kLanes; ++i) d[i] *= b[i];
  finish(c, in, lanes, d);
}

inline void fuse_float(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const auto x = c.w.real(o[1]), y = c.w.real(o[2]), z = c.w.real(o[3]);
  Many<float> d;
  if (in.rounding == 'N') {
    for (int i = 0; i < kLanes; ++i) d[i] = std::fma(x[i], y[i], z[i]);
  } else {
    const auto fma = [](float a, float b, float s) { return std::fma(a, b, s); };
    for (int i = 0; i < kLanes; ++i) d[i] = directed<float>(in.rounding, fma, x[i], y[i], z[i]);
  }
  finish(c, in, lanes, d);
}

inline void compare_floats(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = c.w.real(in.operands[2]), b = c.w.real(in.operands[3]);
  set(c, in, lanes, [&](int i) { return compare(in.compare, in.unordered, a[i], b[i]); });
}

// FSET: one or all bits, or zero.
inline void compare_to_register(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const auto a = c.w.real(o[1]), b = c.w.real(o[2]);
  const uint32_t with = c.w.predicate(o[3]), yes = in.has("BF") ? 0x3f800000u : ~0u;
  each(c.w, o[0], lanes, [&](int i) {
    return compare(in.compare, in.unordered, a[i], b[i]) && (with >> i & 1) ? yes : 0u;
  });
}

inline void minimum_float(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = c.w.real(in.operands[1]), b = c.w.real(in.operands[2]);
  const uint32_t least = c.w.predicate(in.operands[3]);
  const bool keeps_nan = in.has("NAN");
  Many<float> d;
  for (int i = 0; i < kLanes; ++i) {
    d[i] = least >> i & 1 ? std::fmin(a[i], b[i]) : std::fmax(a[i], b[i]);
    if (keeps_nan && (a[i] != a[i] || b[i] != b[i])) d[i] = NAN;
  }
  c.w.store(in.operands[0], d, lanes);
}

inline void select_float(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = bits<Lanes>(c.w.real(in.operands[1])), b = bits<Lanes>(c.w.real(in.operands[2]));
  const uint32_t p = c.w.predicate(in.operands[3]);
  each(c.w, in.operands[0], lanes, [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
}

inline void check_division(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = c.w.real(in.operands[1]), b = c.w.real(in.operands[2]);
  uint32_t slow = 0;
  for (int i = 0; i < kLanes; ++i) slow |= uint32_t{division_check(a[i], b[i])} << i;
  c.w.set_predicate(in.operands[0], slow, lanes);
}

inline void special_function(Context& c, const Instruction& in, uint32_t lanes) {
  const std::string& function = in.modifiers.at(0);
  if (function == "RCP64H" || function == "RSQ64H") {
    return unary(c, in, lanes, [&](uint32_t x) { return special_upper(function, x); });
  }
  const auto a = c.w.real(in.operands[1]);
  Many<float> d{};
  for (int i = 0; i < kLanes; ++i) {
    if (lanes >> i & 1) d[i] = special(function, a[i]);
  }
  c.w.store(in.operands[0], d, lanes);
}

// --- double
// ----------------------------------------------------------------------------------------

template <class F, class... Sources>
void of_doubles(Context& c, const Instruction& in, uint32_t lanes, const F& f,
                const Sources&... of) {
  Many<double> d;
  for (int i = 0; i < kLanes; ++i) d[i] = directed<double>(in.rounding, f, of[i]...);
  c.w.store(in.operands[0], d, lanes);
}

inline void add_double(Context& c, const Instruction& in, uint32_t lanes) {
  of_doubles(
      c, in, lanes, [](double a, double b) { return a + b; }, c.w.real64(in.operands[1]),
      c.w.real64(in.operands[2]));
}
inline void multiply_double(Context& c, const Instruction& in, uint32_t lanes) {
  of_doubles(
      c, in, lanes, [](double a, double b) { return a * b; }, c.w.real64(in.operands[1]),
      c.w.real64(in.operands[2]));
}
inline void fuse_double(Context& c, const Instruction& in, uint32_t lanes) {
  of_doubles(
      c, in, lanes, [](double a, double b, double s) { return std::fma(a, b, s); },
      c.w.real64(in.operands[1]), c.w.real64(in.operands[2]), c.w.real64(in.operands[3]));
}

// DSETP; its MIN and MAX say whether it is a, the number if only one is, and whether neither is.
inline void compare_doubles(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = c.w.real64(in.operands[2]), b = c.w.real64(in.operands[3]);
  const bool least = in.compare == Compare::kMin;
  if (!least && in.compare != Compare::kMax) {
    return set(c, in, lanes, [&](int i) { return compare(in.compare, in.unordered, a[i], b[i]); });
  }
  uint32_t first = 0, neither = 0;
  for (int i = 0; i < kLanes; ++i) {
    const bool nan_a = a[i] != a[i], nan_b = b[i] != b[i];
    first |= uint32_t{nan_b ? !nan_a : least ? a[i] < b[i] : a[i] > b[i]} << i;
    neither |= uint32_t{nan_a && nan_b} << i;
  }
  c.w.set_predicate(in.operands[0], first, lanes);
  c.w.set_predicate(in.operands[1], neither, lanes);
}

// --- halves
// ----------------------------------------------------------------------------------------

// value as a half, or a bfloat16, rounded once.
inline uint32_t half_word(double value, bool brain) {
  const float odd = emulation::double_to_float_odd(value);
  return brain ? emulation::float_to_bfloat16_bits(odd) : emulation::float_to_half_bits(odd);
}

// One half of an operand as a float.
inline Many<float> half_of(const Warp& w, const Operand& o, bool upper, bool brain) {
  const Lanes raw = w.raw(o);
  if (o.flags & kUpper) upper = true;
  if (o.flags & kLower) upper = false;
  Many<float> out;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t h = upper ? raw[i] >> 16 : raw[i] & 0xffff;
    out[i] = brain ? bits<float>(h << 16) : emulation::half_bits_to_float(static_cast<uint16_t>(h));
    if (o.flags & kAbsolute) out[i] = std::fabs(out[i]);
    if (o.flags & kNegative) out[i] = -out[i];
  }
  return out;
}

// HADD2, HMUL2 and HFMA2.
inline void halves(Context& c, const Instruction& in, uint32_t lanes) {
  const auto& o = in.operands;
  const bool brain = in.has("BF16_V2"), adds = in.base == "HADD2";
  const auto one = [&](bool upper) {
    const auto a = half_of(c.w, o[1], upper, brain), b = half_of(c.w, o[2], upper, brain);
    Many<float> d, s{};
    if (o.size() == 4) s = half_of(c.w, o[3], upper, brain);
    for (int i = 0; i < kLanes; ++i) {
      d[i] = adds ? a[i] + b[i] : o.size() == 4 ? std::fma(a[i], b[i], s[i]) : a[i] * b[i];
    }
    return d;
  };
  const auto low = one(false);
  if (in.has("F32")) return c.w.store(o[0], low, lanes);
  const auto high = one(true);
  each(c.w, o[0], lanes,
       [&](int i) { return half_word(high[i], brain) << 16 | half_word(low[i], brain); });
}

// F2FP.PACK_AB: a above b.
inline void pack_halves(Context& c, const Instruction& in, uint32_t lanes) {
  const auto a = c.w.real(in.operands[1]), b = c.w.real(in.operands[2]);
  const bool brain = in.has("BF16");
  each(c.w, in.operands[0], lanes,
       [&](int i) { return half_word(a[i], brain) << 16 | half_word(b[i], brain); });
}

// --- conversions
// -----------------------------------------------------------------------------------

inline void from_integer(Context& c, const Instruction& in, uint32_t lanes) {
  const Operand& source = in.operands[1];
  const bool from_64 = in.has("S64") || in.has("U64");
  const Wide wide = c.w.wide_integer(source);
  const Lanes narrow = c.w.integer(source);
  const auto all = [&](auto& d) {
    using T = std::decay_t<decltype(d[0])>;
    const auto cast = [](auto x) { return static_cast<T>(x); };
    for (int i = 0; i < kLanes; ++i) {
      const auto small = int64_t{static_cast<int32_t>(narrow[i])};
      d[i] = in.is_signed
                 ? directed<T>(in.rounding, cast, from_64 ? static_cast<int64_t>(wide[i]) : small)
                 : directed<T>(in.rounding, cast, from_64 ? wide[i] : uint64_t{narrow[i]});
    }
    c.w.store(in.operands[0], d, lanes);
  };
  Many<double> wide_result;
  Many<float> narrow_result;
  in.has("F64") ? all(wide_result) : all(narrow_result);
}

// The source of F2I, F2F and FRND. Of F2F it is the second type that is named.
inline Many<double> to_convert(const Warp& w, const Instruction& in) {
  std::string type = "F32";
  int named = 0;
  for (const auto& m : in.modifiers) {
    if (m != "F16" && m != "BF16" && m != "F32" && m != "F64") continue;
    if (in.base != "F2F" || named++ == 1) type = m;
  }
  const Operand& source = in.operands[1];
  if (type == "F64") return w.real64(source);
  const auto narrow = type == "F32" ? w.real(source) : half_of(w, source, false, type == "BF16");
  Many<double> x;
  for (int i = 0; i < kLanes; ++i) x[i] = narrow[i];
  return x;
}

inline void to_integers(Context& c, const Instruction& in, uint32_t lanes) {
  const auto x = to_convert(c.w, in);
  const bool to_64 = in.has("U64") || in.has("S64");
  Wide d;
  for (int i = 0; i < kLanes; ++i) d[i] = to_integer(in, x[i], to_64);
  if (to_64) return c.w.store(in.operands[0], d, lanes);
  each(c.w, in.operands[0], lanes, [&](int i) { return static_cast<uint32_t>(d[i]); });
}

// F2F, and FRND: to whole numbers of the same type.
inline void to_real(Context& c, const Instruction& in, uint32_t lanes) {
  auto x = to_convert(c.w, in);
  const std::string to = in.modifiers.empty() ? "F32" : in.modifiers[0];
  const bool whole = in.base == "FRND";
  for (int i = 0; whole && i < kLanes; ++i) x[i] = rounded(x[i], in.rounding);
  if (to == "F64") return c.w.store(in.operands[0], x, lanes);
  const auto cast = [](double y) { return static_cast<float>(y); };
  each(c.w, in.operands[0], lanes, [&](int i) {
    if (to == "F16" || to == "BF16") return half_word(x[i], to == "BF16");
    return bits<uint32_t>(directed<float>(whole ? 'N' : in.rounding, cast, x[i]));
  });
}

}  // namespace machine
