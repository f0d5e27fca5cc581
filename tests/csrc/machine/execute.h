// What an instruction does to a warp's registers and to memory.
#pragma once

#include "arithmetic.h"
#include "codes.h"
#include "transfers.h"

namespace machine {

class Executor {
 public:
  explicit Executor(Arrays& arrays) : arrays_(arrays) {}

  // All but control flow. `lanes` are those that execute it.
  void run(Warp& w, const Instruction& in, uint32_t lanes, Access& access) {
    const auto& o = in.operands;
    switch (in.code) {
      case kNop:
      case kMembar:
      case kLdgdepbar:
      case kDepbar:
      case kEndcollective:
        break;
      case kMov:
        w.store(o[0], w.integer(o[1]), lanes);
        break;
      case kSel:
        select(w, in, lanes, w.integer(o[1]), w.integer(o[2]));
        break;
      case kFsel:
        select(w, in, lanes, bits<Lanes>(w.real(o[1])), bits<Lanes>(w.real(o[2])));
        break;
      case kIadd3:
        add(w, in, lanes);
        break;
      case kViadd:
        binary(w, in, lanes, [](uint32_t a, uint32_t b) { return a + b; });
        break;
      case kImad:
        multiply_add(w, in, lanes);
        break;
      case kLea:
        shifted_add(w, in, lanes);
        break;
      case kShf: {
        const bool left = in.has("L");
        const Lanes a = w.integer(o[1]), n = w.integer(o[2]), b = w.integer(o[3]);
        each(w, o[0], lanes, [&](int i) { return funnel(in, left, a[i], n[i], b[i]); });
        break;
      }
      case kLop3:
        logic3(w, in, lanes);
        break;
      case kPlop3: {
        const uint32_t a = w.predicate(o[2]), b = w.predicate(o[3]), c = w.predicate(o[4]);
        const auto first = static_cast<uint32_t>(o[5].value);
        const auto second = static_cast<uint32_t>(o[6].value);
        w.set_predicate(o[0], lookup3(a, b, c, first), lanes);
        w.set_predicate(o[1], lookup3(a, b, c, second), lanes);
        break;
      }
      case kIsetp:
        compare_integers(w, in, lanes);
        break;
      case kFsetp: {
        const auto a = w.real(o[2]), b = w.real(o[3]);
        set(w, in, lanes, [&](int i) { return compare(in.compare, in.unordered, a[i], b[i]); });
        break;
      }
      case kDsetp: {
        const auto a = w.real64(o[2]), b = w.real64(o[3]);
        if (in.compare == Compare::kMin || in.compare == Compare::kMax) {
          choose(w, in, lanes, a, b);
        } else {
          set(w, in, lanes, [&](int i) { return compare(in.compare, in.unordered, a[i], b[i]); });
        }
        break;
      }
      case kFset: {
        const auto a = w.real(o[1]), b = w.real(o[2]);
        const uint32_t c = w.predicate(o[3]);
        each(w, o[0], lanes, [&](int i) {
          const bool yes = compare(in.compare, in.unordered, a[i], b[i]) && (c >> i & 1);
          return yes ? in.has("BF") ? 0x3f800000u : ~0u : 0u;
        });
        break;
      }
      case kIabs: {
        const Lanes a = w.integer(o[1]);
        each(w, o[0], lanes, [&](int i) { return a[i] >> 31 ? 0 - a[i] : a[i]; });
        break;
      }
      case kImnmx:
      case kAddMnmx:
        minimum(w, in, lanes);
        break;
      case kMnmx3: {
        const Lanes a = w.integer(o[1]), b = w.integer(o[2]), c = w.integer(o[3]);
        const uint32_t least = w.predicate(o[4]);
        const auto of_two = [&](uint32_t x, uint32_t y, bool minimum) {
          const bool less =
              in.is_signed ? static_cast<int32_t>(x) < static_cast<int32_t>(y) : x < y;
          return less == minimum ? x : y;
        };
        each(w, o[0], lanes, [&](int i) {
          const bool minimum = (least >> i & 1) != 0;
          return of_two(of_two(a[i], b[i], minimum), c[i], minimum);
        });
        break;
      }
      case kPrmt: {
        const Lanes a = w.integer(o[1]), s = w.integer(o[2]), b = w.integer(o[3]);
        each(w, o[0], lanes, [&](int i) { return permuted(a[i], s[i], b[i]); });
        break;
      }
      case kPopc: {
        const Lanes a = w.integer(o[1]);
        each(w, o[0], lanes, [&](int i) { return unsigned(__builtin_popcount(a[i])); });
        break;
      }
      case kFlo: {
        const Lanes a = w.integer(o.back());
        each(w, o[0], lanes, [&](int i) {
          const uint32_t x = in.is_signed && a[i] >> 31 ? ~a[i] : a[i];
          if (x == 0) return ~0u;
          const auto top = unsigned(31 - __builtin_clz(x));
          return in.has("SH") ? 31 - top : top;
        });
        break;
      }
      case kBrev: {
        const Lanes a = w.integer(o[1]);
        each(w, o[0], lanes, [&](int i) {
          uint32_t out = 0;
          for (int k = 0; k < 32; ++k) out |= (a[i] >> k & 1) << (31 - k);
          return out;
        });
        break;
      }
      case kSgxt:
        binary(w, in, lanes, [&](uint32_t a, uint32_t n) {
          const uint32_t width = n & 31;
          if (n >= 32 || width == 0) return n >= 32 ? a : 0u;
          const uint32_t low = a & ((1u << width) - 1);
          return in.is_signed && (low >> (width - 1)) ? low | ~0u << width : low;
        });
        break;
      case kBmsk:
        binary(w, in, lanes, [&](uint32_t a, uint32_t n) {
          const uint64_t ones = (uint64_t{1} << (n > 32 ? 32 : n)) - 1;
          return a >= 32 ? 0u : static_cast<uint32_t>(ones << a);
        });
        break;
      case kVote:
        vote(w, in, lanes);
        break;
      case kRedux:
        reduce(w, in, lanes);
        break;
      case kP2r: {
        const Lanes a = w.integer(o[2]);
        const auto mask = static_cast<uint32_t>(o[3].value);
        each(w, o[0], lanes, [&](int i) {
          uint32_t p = 0;
          for (std::size_t k = 0; k < 7; ++k) p |= (w.predicates[k] >> i & 1) << k;
          return (p & mask) | (a[i] & ~mask);
        });
        break;
      }
      case kR2p: {
        const Lanes a = w.integer(o[1]);
        const auto mask = static_cast<uint32_t>(o[2].value);
        for (int k = 0; k < 7; ++k) {
          if ((mask >> k & 1) == 0) continue;
          uint32_t value = 0;
          for (int i = 0; i < kLanes; ++i) value |= (a[i] >> k & 1) << i;
          w.set_predicate({'p', k, 0, 0, 0}, value, lanes);
        }
        break;
      }
      case kR2ur: {
        const Lanes a = w.integer(o.back());
        w.store(o[0], a, lanes);
        break;
      }
      case kS2r:
        system_register(w, in, lanes);
        break;
      case kCs2r: {
        w.store(o[0], Lanes{}, lanes, 0);
        if (!in.has("32")) w.store(o[0], Lanes{}, lanes, 1);
        break;
      }
      case kB2r: {
        w.set_predicate(o.back(), w.vote, lanes);
        const auto count = static_cast<uint32_t>(w.vote_count);
        each(w, o[0], lanes, [&](int) { return count; });
        break;
      }
      case kLdc:
        load_constant(w, in, lanes);
        break;
      case kFadd:
        real2(w, in, lanes, [](float a, float b) { return a + b; });
        break;
      case kFmul:
        real2(w, in, lanes, [](float a, float b) { return a * b; });
        break;
      case kFfma:
        fused(w, in, lanes);
        break;
      case kFmnmx: {
        const auto a = w.real(o[1]), b = w.real(o[2]);
        const uint32_t least = w.predicate(o[3]);
        const bool keeps_nan = in.has("NAN");
        Many<float> d;
        for (int i = 0; i < kLanes; ++i) {
          if (keeps_nan && (a[i] != a[i] || b[i] != b[i])) {
            d[i] = NAN;
          } else {
            d[i] = least >> i & 1 ? std::fmin(a[i], b[i]) : std::fmax(a[i], b[i]);
          }
        }
        w.store(o[0], d, lanes);
        break;
      }
      case kFchk: {
        const auto a = w.real(o[1]), b = w.real(o[2]);
        uint32_t slow = 0;
        for (int i = 0; i < kLanes; ++i) slow |= uint32_t{division_check(a[i], b[i])} << i;
        w.set_predicate(o[0], slow, lanes);
        break;
      }
      case kMufu: {
        const std::string& function = in.modifiers.at(0);
        if (function.size() == 6 && function.substr(3) == "64H") {
          const Lanes a = w.raw(o[1]);
          each(w, o[0], lanes, [&](int i) { return special_upper(function, a[i]); });
        } else {
          const auto a = w.real(o[1]);
          Many<float> d{};
          for (int i = 0; i < kLanes; ++i) {
            if (lanes >> i & 1) d[i] = special(function, a[i]);
          }
          w.store(o[0], d, lanes);
        }
        break;
      }
      case kI2f:
      case kF2i:
      case kF2f:
      case kF2fp:
      case kFrnd:
        convert(w, in, lanes);
        break;
      case kHadd2:
      case kHmul2:
      case kHfma2:
        halves(w, in, lanes);
        break;
      case kDadd:
        real2_64(w, in, lanes, [](double a, double b) { return a + b; });
        break;
      case kDmul:
        real2_64(w, in, lanes, [](double a, double b) { return a * b; });
        break;
      case kDfma: {
        const auto a = w.real64(o[1]), b = w.real64(o[2]), c = w.real64(o[3]);
        Many<double> d;
        for (int i = 0; i < kLanes; ++i) {
          d[i] = directed<double>(
              in.rounding, [](double x, double y, double z) { return std::fma(x, y, z); }, a[i],
              b[i], c[i]);
        }
        w.store(o[0], d, lanes);
        break;
      }
      case kShfl:
        shuffle(w, in, lanes);
        break;
      case kLds:
      case kLdg:
        load(w, in, lanes, arrays_, access);
        break;
      case kSts:
      case kStg:
        store(w, in, lanes, arrays_, access);
        break;
      case kLdgsts:
        copy(w, in, lanes, arrays_, access);
        break;
      default:
        throw Error(in.name + " (" + in.line + ") is not known to the machine (codes.h)");
    }
  }

 private:
  template <class F>
  void binary(Warp& w, const Instruction& in, uint32_t lanes, const F& f) {
    const Lanes a = w.integer(in.operands[1]), b = w.integer(in.operands[2]);
    each(w, in.operands[0], lanes, [&](int i) { return f(a[i], b[i]); });
  }
  template <class F>
  void real2(Warp& w, const Instruction& in, uint32_t lanes, const F& f) {
    const auto a = w.real(in.operands[1]), b = w.real(in.operands[2]);
    Many<float> d;
    for (int i = 0; i < kLanes; ++i) d[i] = f(a[i], b[i]);
    finish(w, in, lanes, d);
  }
  template <class F>
  void real2_64(Warp& w, const Instruction& in, uint32_t lanes, const F& f) {
    const auto a = w.real64(in.operands[1]), b = w.real64(in.operands[2]);
    Many<double> d;
    for (int i = 0; i < kLanes; ++i) d[i] = directed<double>(in.rounding, f, a[i], b[i]);
    w.store(in.operands[0], d, lanes);
  }
  // DSETP.MIN and MAX: whether it is a, the number if only one is, and whether neither is.
  void choose(Warp& w, const Instruction& in, uint32_t lanes, const Many<double>& a,
              const Many<double>& b) {
    const bool least = in.compare == Compare::kMin;
    uint32_t first = 0, neither = 0;
    for (int i = 0; i < kLanes; ++i) {
      const bool nan_a = a[i] != a[i], nan_b = b[i] != b[i];
      first |= uint32_t{nan_b ? !nan_a : least ? a[i] < b[i] : a[i] > b[i]} << i;
      neither |= uint32_t{nan_a && nan_b} << i;
    }
    w.set_predicate(in.operands[0], first, lanes);
    w.set_predicate(in.operands[1], neither, lanes);
  }
  void finish(Warp& w, const Instruction& in, uint32_t lanes, Many<float>& d) {
    if (in.flush) {
      for (int i = 0; i < kLanes; ++i) d[i] = flushed(d[i]);
    }
    if (in.has("SAT")) {
      for (int i = 0; i < kLanes; ++i) d[i] = std::fmin(std::fmax(d[i], 0.0f), 1.0f);
    }
    w.store(in.operands[0], d, lanes);
  }
  void fused(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const auto a = w.real(o[1]), b = w.real(o[2]), c = w.real(o[3]);
    Many<float> d;
    if (in.rounding == 'N') {
      for (int i = 0; i < kLanes; ++i) d[i] = std::fma(a[i], b[i], c[i]);
    } else {
      for (int i = 0; i < kLanes; ++i) {
        d[i] = directed<float>(
            in.rounding, [](float x, float y, float z) { return std::fma(x, y, z); }, a[i], b[i],
            c[i]);
      }
    }
    finish(w, in, lanes, d);
  }
  void select(Warp& w, const Instruction& in, uint32_t lanes, const Lanes& a, const Lanes& b) {
    const uint32_t p = w.predicate(in.operands[3]);
    each(w, in.operands[0], lanes, [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
  }
  template <class F>
  void set(Warp& w, const Instruction& in, uint32_t lanes, const F& f) {
    const auto& o = in.operands;
    uint32_t yes = 0;
    for (int i = 0; i < kLanes; ++i) yes |= uint32_t{f(i)} << i;
    const uint32_t with = w.predicate(o[4]);
    w.set_predicate(o[0], logic(in.logic, yes, with), lanes);
    w.set_predicate(o[1], logic(in.logic, ~yes, with), lanes);
  }
  void compare_integers(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const Lanes a = w.integer(o[2]), b = w.integer(o[3]);
    const uint32_t low = in.extended ? w.predicate(o[5]) : 0;
    set(w, in, lanes, [&](int i) {
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
  static std::size_t sources(const Instruction& in) {
    std::size_t first = 1;
    while (in.operands[first].is_predicate()) ++first;
    return first;
  }
  // A source as a number of up to 33 bits: minus x is ~x + 1, whose carry counts.
  static uint64_t addend(uint32_t raw, const Operand& o) {
    if (o.flags & kInverted) return static_cast<uint32_t>(~raw);
    return o.flags & kNegative ? uint64_t{static_cast<uint32_t>(~raw)} + 1 : raw;
  }
  uint64_t carry(Warp& w, const Instruction& in, std::size_t at, int lane) {
    if (!in.extended || at >= in.operands.size()) return 0;
    return w.predicate(in.operands[at]) >> lane & 1;
  }
  void add(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const std::size_t s = sources(in);
    const Lanes a = w.raw(o[s]), b = w.raw(o[s + 1]), c = w.raw(o[s + 2]);
    std::array<uint32_t, 2> out{};
    Lanes d;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t sum = addend(a[i], o[s]) + addend(b[i], o[s + 1]) + addend(c[i], o[s + 2]) +
                           carry(w, in, s + 3, i) + carry(w, in, s + 4, i);
      d[i] = static_cast<uint32_t>(sum);
      out[0] |= uint32_t{sum >> 32 >= 1} << i;
      out[1] |= uint32_t{sum >> 32 >= 2} << i;
    }
    w.store(o[0], d, lanes);
    for (std::size_t k = 1; k < s; ++k) w.set_predicate(o[k], out[k - 1], lanes);
  }
  void multiply_add(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const std::size_t s = sources(in);
    const Lanes a = w.integer(o[s]), b = w.integer(o[s + 1]);
    if (!in.wide && !in.high) {
      const Lanes c = w.integer(o[s + 2]);
      if (!in.extended) {
        each(w, o[0], lanes, [&](int i) { return a[i] * b[i] + c[i]; });
      } else {
        each(w, o[0], lanes, [&](int i) {
          return static_cast<uint32_t>(a[i] * b[i] + c[i] + carry(w, in, s + 3, i));
        });
      }
      return;
    }
    const Wide c = w.wide_integer(o[s + 2]);
    Wide d;
    uint32_t out = 0;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product = in.is_signed
                                   ? static_cast<uint64_t>(int64_t{static_cast<int32_t>(a[i])} *
                                                           int64_t{static_cast<int32_t>(b[i])})
                                   : uint64_t{a[i]} * b[i];
      d[i] = product + c[i];
      bool over = d[i] < product;
      const uint64_t in_carry = carry(w, in, s + 3, i);
      d[i] += in_carry;
      over = over || (in_carry && d[i] == 0);
      out |= uint32_t{over} << i;
    }
    if (in.high) {
      each(w, o[0], lanes, [&](int i) { return static_cast<uint32_t>(d[i] >> 32); });
    } else {
      w.store(o[0], d, lanes);
    }
    if (s > 1) w.set_predicate(o[1], out, lanes);
  }
  void shifted_add(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const std::size_t s = sources(in);
    const bool has_upper = in.high && !in.narrow;
    const Lanes a = w.integer(o[s]), b = w.raw(o[s + 1]);
    const Lanes upper = has_upper ? w.integer(o[s + 2]) : Lanes{};
    const std::size_t at = s + 2 + has_upper;
    const auto count = static_cast<int>(o[at].value);
    uint32_t out = 0;
    Lanes d;
    for (int i = 0; i < kLanes; ++i) {
      uint64_t both = uint64_t{upper[i]} << 32 | a[i];
      if (in.narrow) both = static_cast<uint64_t>(int64_t{static_cast<int32_t>(a[i])});
      both <<= count;
      const auto part = static_cast<uint32_t>(in.high ? both >> 32 : both);
      const uint64_t sum = part + addend(b[i], o[s + 1]) + carry(w, in, at + 1, i);
      d[i] = static_cast<uint32_t>(sum);
      out |= uint32_t{sum >> 32 != 0} << i;
    }
    w.store(o[0], d, lanes);
    if (s > 1) w.set_predicate(o[1], out, lanes);
  }
  void logic3(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const std::size_t s = o[0].is_predicate() ? 2 : 1;
    const Lanes a = w.integer(o[s]), b = w.integer(o[s + 1]), c = w.integer(o[s + 2]);
    const auto table = static_cast<uint32_t>(o[s + 3].value);
    Lanes d;
    uint32_t any = 0;
    for (int i = 0; i < kLanes; ++i) {
      d[i] = lookup3(a[i], b[i], c[i], table);
      any |= uint32_t{d[i] != 0} << i;
    }
    w.store(o[s - 1], d, lanes);
    if (s == 2) w.set_predicate(o[0], any | w.predicate(o[s + 4]), lanes);
  }
  void minimum(Warp& w, const Instruction& in, uint32_t lanes) {
    const auto& o = in.operands;
    const bool adds = in.code == kAddMnmx;
    Lanes a = w.integer(o[1]), b = w.integer(o[2]);
    if (adds) {
      for (int i = 0; i < kLanes; ++i) a[i] += b[i];
      b = w.integer(o[3]);
    }
    const uint32_t least = w.predicate(o[adds ? 4 : 3]);
    each(w, o[0], lanes, [&](int i) {
      const bool less =
          in.is_signed ? static_cast<int32_t>(a[i]) < static_cast<int32_t>(b[i]) : a[i] < b[i];
      return less == ((least >> i & 1) != 0) ? a[i] : b[i];
    });
  }
  Arrays& arrays_;
};

}  // namespace machine
