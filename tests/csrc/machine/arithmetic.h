// What one lane of an arithmetic instruction computes.
#pragma once

#include <cfenv>
#include <cmath>

#include "emulator/types.h"
#include "warp.h"

namespace machine {

inline uint32_t lookup3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  if (table & 1) out |= ~a & ~b & ~c;
  if (table & 2) out |= ~a & ~b & c;
  if (table & 4) out |= ~a & b & ~c;
  if (table & 8) out |= ~a & b & c;
  if (table & 16) out |= a & ~b & ~c;
  if (table & 32) out |= a & ~b & c;
  if (table & 64) out |= a & b & ~c;
  if (table & 128) out |= a & b & c;
  return out;
}

template <class T>
bool compare(Compare how, bool unordered, T a, T b) {
  const bool nan = a != a || b != b;
  switch (how) {
    case Compare::kF:
      return false;
    case Compare::kT:
      return true;
    case Compare::kNum:
      return !nan;
    case Compare::kNan:
      return nan;
    default:
      break;
  }
  if (nan) return unordered;
  switch (how) {
    case Compare::kLt:
      return a < b;
    case Compare::kEq:
      return a == b;
    case Compare::kLe:
      return a <= b;
    case Compare::kGt:
      return a > b;
    case Compare::kNe:
      return a != b;
    default:
      return a >= b;
  }
}

// The upper half of a comparison of 64 bits, whose lower half found `low`.
template <class T>
bool compare_upper(Compare how, T a, T b, bool low) {
  if (a != b) {
    const Compare strict = how == Compare::kLe   ? Compare::kLt
                           : how == Compare::kGe ? Compare::kGt
                                                 : how;
    return compare(strict, false, a, b);
  }
  return low;
}

inline uint32_t logic(char how, uint32_t a, uint32_t b) {
  return how == '|' ? a | b : how == '^' ? a ^ b : a & b;
}

// (high:low) shifted as SHF does.
inline uint32_t funnel(const Instruction& in, bool left, uint32_t low, uint32_t count,
                       uint32_t high) {
  const uint32_t width = in.bytes == 8 ? 64 : 32;
  count = in.wraps ? count & (width - 1) : count < width ? count : width;
  const uint64_t both = uint64_t{high} << 32 | low;
  uint64_t out;
  if (left) {
    out = count >= 64 ? 0 : both << count;
  } else if (in.is_signed) {
    const auto value = static_cast<int64_t>(both);
    out = static_cast<uint64_t>(value >> (count >= 64 ? 63 : count));
  } else {
    out = count >= 64 ? 0 : both >> count;
  }
  return static_cast<uint32_t>(in.high ? out >> 32 : out);
}

inline float flushed(float x) {
  return std::fabs(x) < 1.1754943508222875e-38f ? std::copysign(0.0f, x) : x;
}

// f(a, b, c) rounded in a direction. Volatile: the compiler does not know the processor's mode.
template <class To, class F, class... From>
To directed(char rounding, const F& f, From... from) {
  if (rounding == 'N') return f(from...);
  const int before = std::fegetround();
  std::fesetround(rounding == 'M' ? FE_DOWNWARD : rounding == 'P' ? FE_UPWARD : FE_TOWARDZERO);
  const auto opaque = [](volatile auto x) { return x; };
  volatile To result = f(opaque(from)...);
  std::fesetround(before);
  return result;
}

// Whether a / b needs the slow way: quotient or remainder could leave the normal numbers.
inline bool division_check(float a, float b) {
  const int of_a = static_cast<int>(bits<uint32_t>(a) >> 23 & 255);
  const int of_b = static_cast<int>(bits<uint32_t>(b) >> 23 & 255);
  if (of_b < 2 || of_b > 252 || of_a == 255) return true;
  if (a == 0) return false;
  return of_a < 25 || of_a - of_b > 125 || of_a - of_b < -124;
}

inline float special(const std::string& function, float x) {
  if (function == "RCP") return 1.0f / flushed(x);
  if (function == "RSQ")
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(flushed(x))));
  if (function == "SQRT") return std::sqrt(flushed(x));
  if (function == "EX2") return std::exp2(flushed(x));
  if (function == "LG2") return std::log2(flushed(x));
  if (function == "SIN") return std::sin(x * 6.2831853f);
  if (function == "COS") return std::cos(x * 6.2831853f);
  throw Error("MUFU." + function + " is not known");
}

// Upper half of a double: RCP64H and RSQ64H see and give no more.
inline uint32_t special_upper(const std::string& function, uint32_t upper) {
  const double x = bits<double>(uint64_t{upper} << 32);
  const double y = function == "RCP64H" ? 1.0 / x : 1.0 / std::sqrt(x);
  return static_cast<uint32_t>(bits<uint64_t>(y) >> 32);
}

inline double rounded(double x, char rounding) {
  if (rounding == 'Z') return std::trunc(x);
  if (rounding == 'M') return std::floor(x);
  if (rounding == 'P') return std::ceil(x);
  return std::nearbyint(x);
}

// F2I: what does not fit becomes the nearest that does, NaN zero (of 32 bits).
inline uint64_t to_integer(const Instruction& in, double x, bool to_64) {
  if (x != x) return to_64 ? uint64_t{1} << 63 : 0;
  x = rounded(x, in.rounding);
  if (in.is_signed) {
    const double top = to_64 ? 9.2233720368547758e18 : 2147483647.0;
    if (x >= top) return to_64 ? ~uint64_t{0} >> 1 : 0x7fffffffu;
    if (x <= -top - 1) return to_64 ? uint64_t{1} << 63 : 0x80000000u;
    return static_cast<uint64_t>(static_cast<int64_t>(x));
  }
  if (x <= 0) return 0;
  if (x >= (to_64 ? 1.8446744073709552e19 : 4294967295.0))
    return to_64 ? ~uint64_t{0} : 0xffffffffu;
  return static_cast<uint64_t>(x);
}

inline uint32_t permuted(uint32_t a, uint32_t selector, uint32_t b) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(both >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

}  // namespace machine
