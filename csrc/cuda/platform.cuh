// What the kernels need of CUDA: its headers under nvcc, tests/csrc/emulator/ where they run on the
// CPU. Kernels are free of torch, and reach shared memory through SharedArray only: a pointer on a
// device, checked for bounds and races when emulated.
#pragma once

#include <cstdint>
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

// Elements i, ..., i + 3 of shared memory; i is a multiple of four, the array starts at one of 16
// bytes.
template <class T>
struct alignas(16) Four {
  T v[4];
};
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

// One instruction, with a relative error of 2^-22.9 in float and less than 2^-20 in double (PTX
// ISA: rsqrt.approx.ftz and rcp.approx.ftz); x must be a normal number.
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
