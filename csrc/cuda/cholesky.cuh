// S = (1 - rho) S' + (rho trace(S') / D + eps) I = L L^T, W = L^{-T} (upper triangular).
//
// One block per group, D <= 128, S in shared memory: column by column (right-looking), then row j
// of W by thread j: W_ji = -(sum_{j <= k < i} L_ik W_jk) / L_ii, W_jj = 1 / L_jj, kept in the upper
// triangle while L still fills the lower one. Bytes: S once, W once. Determinism: every element is
// one sum, in order. Shared memory: D (D + 1) + 2 D elements, 66 KiB for 128 in float.
// Not positive definite, or not finite: NaN for that group alone.
#pragma once

#include "reduce.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

constexpr int kCholeskyThreads = 128;  // at least the largest D: one thread per row of W
constexpr int kCholeskyLimit = kCholeskyThreads;

template <class T>
struct CholeskyArguments {
  int64_t width;
  const T* blended;  // [G, D, D]: S', symmetric
  const T* rho;      // [G] or null
  T eps;
  T* matrix;  // [G, D, D]
};

template <class T>
int64_t cholesky_shared_bytes(int64_t D) {
  return static_cast<int64_t>(sizeof(T)) * (D * (D + 1) + D + kReduceWords);
}

// a [D, D] of row stride D + 1: S -> L in its lower triangle. False (in all threads) where a pivot
// is not positive and finite. diagonal [D] gets 1 / L_ii.
template <class T>
__device__ __forceinline__ bool cholesky_in_place(int D, const SharedArray<T>& a,
                                                  const SharedArray<T>& diagonal) {
  const int thread = static_cast<int>(threadIdx.x), ld = D + 1;
  for (int k = 0; k < D; ++k) {
    const T pivot = a[k * ld + k];
    if (!(pivot > T(0)) || !(pivot - pivot == T(0))) return false;  // the same in every thread
    const T inverse = T(1) / sqrt(pivot);
    const int i = k + 1 + thread;  // D <= kCholeskyThreads: a thread has one row
    T scaled = 0;
    if (i < D) {
      scaled = a[i * ld + k] * inverse;
      a[i * ld + k] = scaled;
    }
    if (thread == 0) diagonal[k] = inverse;
    __syncthreads();
    if (i < D) {
      for (int j = k + 1; j <= i; ++j) a[i * ld + j] = a[i * ld + j] - scaled * a[j * ld + k];
    }
    __syncthreads();
  }
  return true;
}

template <class T>
__global__ void __launch_bounds__(kCholeskyThreads) cholesky_kernel(CholeskyArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int D = static_cast<int>(in.width), thread = static_cast<int>(threadIdx.x), ld = D + 1;
  const int64_t g = blockIdx.x, base = g * D * D;
  const SharedArray<T> a(arena, 0, D * ld), diagonal(arena, D * ld * sizeof(T), D);
  const SharedArray<T> scratch(arena, (D * ld + D) * sizeof(T), kReduceWords);
  T keep = 1, shift = in.eps;
  if (in.rho != nullptr) {
    const T own = thread < D ? in.blended[base + thread * D + thread] : T(0);
    keep = 1 - in.rho[g];
    shift = in.rho[g] * block_sum(own, scratch) / static_cast<T>(D) + in.eps;
  }
  bool finite = true;
  for (int e = thread; e < D * D; e += kCholeskyThreads) {
    const int i = e / D, j = e % D;
    const T value = keep * in.blended[base + e] + (i == j ? shift : T(0));
    finite = finite && value - value == T(0);
    a[i * ld + j] = value;
  }
  const bool fine = __syncthreads_and(finite) && cholesky_in_place(D, a, diagonal);
  if (fine && thread < D) {  // row `thread` of W, right of the diagonal
    for (int i = thread + 1; i < D; ++i) {
      T sum = a[i * ld + thread] * diagonal[thread];
      for (int k = thread + 1; k < i; ++k) sum += a[i * ld + k] * a[thread * ld + k];
      a[thread * ld + i] = -sum * diagonal[i];
    }
  }
  __syncthreads();
  for (int e = thread; e < D * D; e += kCholeskyThreads) {
    const int i = e / D, j = e % D;
    T value = 0;
    if (!fine) {
      value = kNaN<T>;
    } else if (i == j) {
      value = diagonal[i];
    } else if (i < j) {
      value = a[i * ld + j];
    }
    in.matrix[base + e] = value;
  }
}

// For larger D, around the library's factorisation: S from S', and NaN where it failed.
template <class T>
struct ShiftArguments {
  int64_t groups, width;
  const T* blended;  // [G, D, D]
  const T* rho;      // [G] or null
  T eps;
  T* shifted;   // [G, D, D]
  T* identity;  // [G, D, D]: the right-hand side of the triangular solve
};

template <class T>
__global__ void __launch_bounds__(256) shift_kernel(ShiftArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, D = in.width, base = g * D * D;
  T keep = 1, shift = in.eps;
  if (in.rho != nullptr) {
    T own = 0;
    for (int64_t i = threadIdx.x; i < D; i += blockDim.x) own += in.blended[base + i * D + i];
    keep = 1 - in.rho[g];
    shift = in.rho[g] * block_sum(own, scratch) / static_cast<T>(D) + in.eps;
  }
  bool finite = true;
  for (int64_t e = threadIdx.x; e < D * D; e += blockDim.x) {
    const T value = keep * in.blended[base + e] + (e / D == e % D ? shift : T(0));
    finite = finite && value - value == T(0);
  }
  const bool fine = __syncthreads_and(finite);
  for (int64_t e = threadIdx.x; e < D * D; e += blockDim.x) {
    const T one = e / D == e % D ? T(1) : T(0);
    // -I in place of what is not finite: the library reports that it is not positive definite
    in.shifted[base + e] = fine ? keep * in.blended[base + e] + one * shift : -one;
    in.identity[base + e] = one;
  }
}

// matrix [G, D, D] = the transpose of inverse, NaN for groups with a nonzero info.
template <class T>
__global__ void __launch_bounds__(256)
    flip_or_nan_kernel(int64_t groups, int64_t D, const T* inverse, const int32_t* info,
                       T* matrix) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (e >= groups * D * D) return;
  const int64_t g = e / (D * D), i = e / D % D, j = e % D;
  matrix[e] = info[g] == 0 ? inverse[(g * D + j) * D + i] : kNaN<T>;
}

// The whitening matrix of blended [G, D, D] for D <= kCholeskyLimit.
template <class Device, class T>
void run_cholesky(Device& device, int64_t G, int64_t D, const T* blended, const T* rho, double eps,
                  T* matrix) {
  device.launch(cholesky_kernel<T>, G, kCholeskyThreads, cholesky_shared_bytes<T>(D),
                CholeskyArguments<T>{D, blended, rho, static_cast<T>(eps), matrix});
}

}  // namespace cuda
}  // namespace fastwhiten
