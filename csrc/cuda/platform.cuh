// What the kernels need of CUDA: its headers under nvcc, tests/csrc/emulator/ where they run on the
// CPU. Kernels are free of torch, and reach shared memory through SharedArray only: a pointer on a
// device, checked for bounds and races when emulated.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef FASTWHITEN_EMULATE
#include "emulator/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The dynamic shared memory of the block, aligned for vectors of 16 bytes.
#define FASTWHITEN_SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]

namespace fastwhiten {
namespace cuda {

template <class T>
class SharedArray {
 public:
  __device__ __forceinline__ SharedArray(char* arena, int64_t byte_offset, int64_t)
      : first_(reinterpret_cast<T*>(arena + byte_offset)) {}
  __device__ __forceinline__ T& operator[](int i) const { return first_[i]; }
  __device__ __forceinline__ T load(int i) const { return first_[i]; }
  __device__ __forceinline__ void store(int i, T value) const { first_[i] = value; }

 private:
  T* first_;
};

}  // namespace cuda
}  // namespace fastwhiten
#endif

namespace fastwhiten {
namespace cuda {

template <class T>
inline constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

using Half = __half;
using BFloat16 = __nv_bfloat16;

// value, of which the compiler knows nothing: what is computed from it inside a loop, or after one,
// is computed there, and takes no registers before.
__device__ __forceinline__ int opaque(int value) {
#ifndef FASTWHITEN_EMULATE
  asm volatile("" : "+r"(value));
#endif
  return value;
}
__device__ __forceinline__ int64_t opaque(int64_t value) {
#ifndef FASTWHITEN_EMULATE
  asm volatile("" : "+l"(value));
#endif
  return value;
}

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T v[4];
  friend __device__ __forceinline__ Four operator+(const Four& a, const Four& b) {
    return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}};
  }
};

// Vectors in shared memory: elements i, ..., i + 3; i is a multiple of four, the array starts at a
// multiple of 16 bytes.
template <class T>
__device__ __forceinline__ Four<T> load4(const SharedArray<T>& a, int i) {
#ifdef FASTWHITEN_EMULATE
  a.check_vector(i);
  return {{a[i], a[i + 1], a[i + 2], a[i + 3]}};
#else
  return *reinterpret_cast<const Four<T>*>(&a[i]);
#endif
}
template <class T>
__device__ __forceinline__ void store4(const SharedArray<T>& a, int i, const Four<T>& value) {
#ifdef FASTWHITEN_EMULATE
  a.check_vector(i);
  for (int n = 0; n < 4; ++n) a[i + n] = value.v[n];
#else
  *reinterpret_cast<Four<T>*>(&a[i]) = value;
#endif
}

// One instruction; x must be a normal number. The PTX ISA promises a relative error of 2^-22.9 and
// one unit in the last place in float (rsqrt.approx, rcp.approx), in double none (.ftz.f64): 20
// bits of the fraction go in and come out.
#ifdef FASTWHITEN_EMULATE
using emulation::approximate_reciprocal;
using emulation::approximate_rsqrt;
#else
#define FASTWHITEN_APPROXIMATE(name, T, instruction, constraint)     \
  __device__ __forceinline__ T name(T x) {                           \
    T y;                                                             \
    asm(instruction " %0, %1;" : "=" constraint(y) : constraint(x)); \
    return y;                                                        \
  }
FASTWHITEN_APPROXIMATE(approximate_rsqrt, float, "rsqrt.approx.ftz.f32", "f")
FASTWHITEN_APPROXIMATE(approximate_rsqrt, double, "rsqrt.approx.ftz.f64", "d")
FASTWHITEN_APPROXIMATE(approximate_reciprocal, float, "rcp.approx.ftz.f32", "f")
FASTWHITEN_APPROXIMATE(approximate_reciprocal, double, "rcp.approx.ftz.f64", "d")
#undef FASTWHITEN_APPROXIMATE
#endif

// Vectors in global memory: p is a multiple of what they are moved in, 8 bytes of a half, else 16.
template <class In>
constexpr int kVectorBytes = sizeof(In) == 2 ? 8 : 16;
#ifndef FASTWHITEN_EMULATE
template <class In>
using VectorOf = std::conditional_t<sizeof(In) == 2, uint2, uint4>;
#endif
template <class In>
__device__ __forceinline__ Four<In> load4(const In* p) {
  Four<In> four;
#ifdef FASTWHITEN_EMULATE
  ::emulation::check_global_vector(p, kVectorBytes<In>);
  for (int n = 0; n < 4; ++n) four.v[n] = p[n];
#else
  VectorOf<In> parts[4 * sizeof(In) / kVectorBytes<In>];
#pragma unroll
  for (unsigned n = 0; n < sizeof(parts) / sizeof(parts[0]); ++n) {
    parts[n] = reinterpret_cast<const VectorOf<In>*>(p)[n];
  }
  memcpy(&four, parts, sizeof(four));
#endif
  return four;
}
template <class In>
__device__ __forceinline__ void store4(In* p, const Four<In>& four) {
#ifdef FASTWHITEN_EMULATE
  ::emulation::check_global_vector(p, kVectorBytes<In>);
  for (int n = 0; n < 4; ++n) p[n] = four.v[n];
#else
  VectorOf<In> parts[4 * sizeof(In) / kVectorBytes<In>];
  memcpy(parts, &four, sizeof(four));
#pragma unroll
  for (unsigned n = 0; n < sizeof(parts) / sizeof(parts[0]); ++n) {
    reinterpret_cast<VectorOf<In>*>(p)[n] = parts[n];
  }
#endif
}

// Copies of such vectors to shared memory, `present` or zeros, that go on while the thread does
// something else: nobody reads the words before it has waited. The words of a vector lie in parts
// of kVectorBytes, `apart` words from one to the next.
template <class In>
constexpr int kVectorParts = 4 * sizeof(In) / kVectorBytes<In>;
template <class In>
constexpr int kPartWords = kVectorBytes<In> / 4;
template <class In>
__device__ __forceinline__ void start_copy4(const SharedArray<uint32_t>& to, int i, int apart,
                                            const In* from, bool present) {
#ifdef FASTWHITEN_EMULATE
  Four<In> four{};
  if (present) four = load4(from);
  for (int n = 0; n < kVectorParts<In>; ++n) {
    to.start_copy(i + n * apart, reinterpret_cast<const uint32_t*>(&four) + n * kPartWords<In>,
                  kPartWords<In>);
  }
#else
#pragma unroll
  for (int n = 0; n < kVectorParts<In>; ++n) {
    const auto place = static_cast<unsigned>(__cvta_generic_to_shared(&to[i + n * apart]));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(place), "l"(reinterpret_cast<const char*>(from) + n * kVectorBytes<In>),
                   "n"(kVectorBytes<In>), "r"(present ? kVectorBytes<In> : 0)
                 : "memory");
  }
#endif
}
// ... of one number.
template <class T>
__device__ __forceinline__ void start_copy(const SharedArray<T>& to, int i, const T* from,
                                           bool present) {
#ifdef FASTWHITEN_EMULATE
  const T number = present ? *from : T(0);
  to.start_copy(i, &number, 1);
#else
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(&to[i]));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
               :
               : "r"(place), "l"(from), "n"(sizeof(T)), "r"(present ? int{sizeof(T)} : 0)
               : "memory");
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#ifdef FASTWHITEN_EMULATE
  ::emulation::finish_copies();
#else
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}
// What was copied.
template <class In>
__device__ __forceinline__ Four<In> copied4(const SharedArray<uint32_t>& from, int i, int apart) {
  uint32_t words[kVectorParts<In> * kPartWords<In>];
#pragma unroll
  for (int n = 0; n < kVectorParts<In>; ++n) {
#ifdef FASTWHITEN_EMULATE
    from.check_vector(i + n * apart, kVectorBytes<In>);
    for (int w = 0; w < kPartWords<In>; ++w)
      words[n * kPartWords<In> + w] = from[i + n * apart + w];
#else
    const auto part = *reinterpret_cast<const VectorOf<In>*>(&from[i + n * apart]);
    memcpy(words + n * kPartWords<In>, &part, sizeof(part));
#endif
  }
  Four<In> four;
  memcpy(&four, words, sizeof(four));
  return four;
}

template <class T>
__device__ __forceinline__ T convert(float value) {
  return static_cast<T>(value);
}
template <class T>
__device__ __forceinline__ T convert(double value) {
  return static_cast<T>(value);
}
template <class T>
__device__ __forceinline__ T convert(Half value) {
  return static_cast<T>(__half2float(value));
}
template <class T>
__device__ __forceinline__ T convert(BFloat16 value) {
  return static_cast<T>(__bfloat162float(value));
}

// value as an Out, rounded once.
template <class Out, class T>
__device__ __forceinline__ Out round_to(T value) {
  if constexpr (sizeof(Out) > 2) {
    return static_cast<Out>(value);
  } else if constexpr (std::is_same_v<Out, Half>) {
    if constexpr (sizeof(T) == 8) {
      return __double2half(value);
    } else {
      return __float2half_rn(value);
    }
  } else {
    if constexpr (sizeof(T) == 8) {
      return __double2bfloat16(value);
    } else {
      return __float2bfloat16_rn(value);
    }
  }
}

}  // namespace cuda
}  // namespace fastwhiten
