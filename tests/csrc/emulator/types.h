// The vocabulary of CUDA C++ that kernels use, for a plain C++17 compiler: qualifiers, dim3, half
// and bfloat16 with their conversions, and functions of the math library. Nothing else in the
// repository may define these names.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using uint3 = dim3;
using cudaStream_t = struct EmulatedStream*;  // there is one order of things only

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

namespace emulation {
template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// exact (1 + error) or exact (1 - error), by a hash of x.
template <class T>
T off_by(T exact, T x, T error) {
  const auto bits = bit_cast<std::uint32_t>(static_cast<float>(x));
  return exact + exact * ((bits * 2654435761u >> 31) != 0 ? error : -error);
}
// The upper word of a double, which holds 20 bits of its fraction.
inline double upper_word(double x) {
  return bit_cast<double>(bit_cast<std::uint64_t>(x) & 0xffffffff00000000u);
}

// As wrong as the PTX ISA allows: by 2^-22.9, and by one unit in the last place. Of doubles the
// upper word goes in and comes out, and no more is said: it is off by another 2^-20 here.
inline float approximate_rsqrt(float x) { return off_by(1.0f / sqrtf(x), x, 0x1p-22f * 0.536f); }
inline float approximate_reciprocal(float x) { return off_by(1.0f / x, x, 0x1p-23f); }
inline double approximate_rsqrt(double x) {
  return upper_word(off_by(1.0 / ::sqrt(upper_word(x)), x, 0x1p-20));
}
inline double approximate_reciprocal(double x) {
  return upper_word(off_by(1.0 / upper_word(x), x, 0x1p-20));
}
}  // namespace emulation

// The types of cuda_fp16.h and cuda_bf16.h: storage only, arithmetic is done in float.
struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};
using half = __half;
using nv_bfloat16 = __nv_bfloat16;

namespace emulation {
// Rounds to nearest, ties to even, by arithmetic on the float's bits.
inline std::uint16_t float_to_half_bits(float value) {
  const auto bits = bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = fabsf(value);
  if (value != value) return 0x7fffu;                // as __float2half: the canonical NaN
  if (magnitude >= 65520.0f) return sign | 0x7c00u;  // overflows, or is infinite
  if (magnitude < 6.103515625e-05f) {                // subnormal: a multiple of 2^-24
    return sign | static_cast<std::uint16_t>(lrintf(magnitude * 16777216.0f));
  }
  std::uint32_t rounded = (bits & 0x7fffffffu) - (112u << 23);  // exponent bias 127 to 15
  rounded += 0xfffu + (rounded >> 13 & 1u);
  return sign | static_cast<std::uint16_t>(rounded >> 13);
}

inline float half_bits_to_float(std::uint16_t bits) {
  const unsigned exponent = bits >> 10 & 31u, fraction = bits & 1023u;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction != 0 ? std::numeric_limits<float>::quiet_NaN()
                              : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 5.9604644775390625e-08f;
  } else {
    magnitude = ldexpf(static_cast<float>(1024u + fraction), static_cast<int>(exponent) - 25);
  }
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

inline std::uint16_t float_to_bfloat16_bits(float value) {
  if (value != value) return 0x7fffu;
  const auto bits = bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
}  // namespace emulation

inline float __half2float(__half h) { return emulation::half_bits_to_float(h.bits); }
inline __half __float2half(float f) { return {emulation::float_to_half_bits(f)}; }
inline __half __float2half_rn(float f) { return __float2half(f); }
inline float __bfloat162float(__nv_bfloat16 b) {
  return emulation::bit_cast<float>(static_cast<std::uint32_t>(b.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16(float f) { return {emulation::float_to_bfloat16_bits(f)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __float2bfloat16(f); }

inline unsigned __float_as_uint(float x) { return emulation::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::bit_cast<double>(x); }

// From double in one rounding: via float to odd (the last bit remembers what was cut off).
namespace emulation {
inline float double_to_float_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || value != value || isinf(nearest)) return nearest;
  float down = nearest;  // towards zero
  if (fabs(static_cast<double>(nearest)) > fabs(value)) down = nextafterf(nearest, 0.0f);
  return bit_cast<float>(bit_cast<std::uint32_t>(down) | 1u);
}
}  // namespace emulation
inline __half __double2half(double d) { return __float2half(emulation::double_to_float_odd(d)); }
inline __nv_bfloat16 __double2bfloat16(double d) {
  return __float2bfloat16(emulation::double_to_float_odd(d));
}
