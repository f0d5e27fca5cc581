// S = (1 - rho) S' + (rho trace(S') / D + eps) I = L L^T, W = L^{-T} (upper triangular).
//
// One block per group, D <= 128, any number of warps, S in shared memory. Elimination on [S | I]:
// column k of L turns what is right of it into the next Schur complement and, in the upper
// triangle, the rows above k + 1 of W towards their sums W_ji = -(sum_{j <= k < i} L_ik W_jk) /
// L_ii. One barrier a column. Bytes: S' once, W once. Determinism: every element is one sum, in
// order. Shared memory: D (D + 1) + D elements, 65 KiB for 128 in float. Not positive definite, or
// not finite: NaN for that group alone.
#pragma once

#include "reduce.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

constexpr int kCholeskyLimit = 128;  // the largest D

// Up to 32 channels a column leaves little to do, and a barrier of few warps is a short one.
constexpr int kCholeskyThreads = 512;
inline int cholesky_threads(int64_t D) { return D <= 32 ? kCholeskyThreads / 4 : kCholeskyThreads; }

template <class T>
struct CholeskyArguments {
  int64_t width;
  const T* blended;  // [G, D, D]: S', symmetric
  const T* rho;      // [G] or null
  T eps;
  T* matrix;  // [G, D, D]
};

// An odd number, so that the rows of a column lie in different banks.
__host__ __device__ constexpr int cholesky_stride(int D) { return D / 2 * 2 + 1; }

template <class T>
int64_t cholesky_shared_bytes(int64_t D) {
  return static_cast<int64_t>(sizeof(T)) * (D * cholesky_stride(static_cast<int>(D)) + D);
}

// The lower triangle of S from that of one group's S', with the intensity rho, into a [D, stride].
// Every warp adds up the trace by itself. No barrier.
template <class T>
__device__ __forceinline__ void load_shrunk(int D, const T* blended, bool shrink, T rho, T eps,
                                            const SharedArray<T>& a, int stride) {
  const Place me = place();
  T keep = 1, shift = eps;
  if (shrink) {
    T trace = 0;
    for (int i = me.lane; i < D; i += 32) trace += blended[i * D + i];
    keep = 1 - rho;
    shift = rho * warp_sum(trace) / static_cast<T>(D) + eps;
  }
  for (int i = me.warp; i < D; i += me.warps) {
    for (int j = me.lane; j <= i; j += 32) {
      a[i * stride + j] = keep * blended[i * D + j] + (i == j ? shift : T(0));
    }
  }
}

// S in the lower triangle of a -> W_ji L_ii in the strict upper one; diagonal [D] gets 1 / L_ii.
// False (in all threads) where a pivot is not positive and finite, which what is not finite in S
// comes to. Barriers before and between.
template <class T>
__device__ __forceinline__ bool eliminate(int D, const SharedArray<T>& a, int stride,
                                          const SharedArray<T>& diagonal) {
  const Place me = place();
  for (int k = 0; k < D; ++k) {
    __syncthreads();
    const T pivot = a[k * stride + k];
    if (!(pivot > T(0)) || !(pivot - pivot == T(0))) return false;  // the same in every thread
    const T inverse = T(1) / sqrt(pivot);
    if (threadIdx.x == 0) diagonal[k] = inverse;
    for (int j = me.lane; j < D; j += 32) {
      // L_jk below the diagonal, W_jk above it and on it.
      const T entry = j == k ? inverse : static_cast<T>(a[j * stride + k]) * inverse;
      for (int i = k + 1 + me.warp; i < D; i += me.warps) {
        if (j > i) continue;
        const int to = j > k ? i * stride + j : j * stride + i;
        const T old = j == k ? T(0) : static_cast<T>(a[to]);
        a[to] = old - static_cast<T>(a[i * stride + k]) * inverse * entry;
      }
    }
  }
  return true;
}

// From S in the lower triangle of a [D, stride] to W, or NaN, in a and in matrix [D, D] in global
// memory; diagonal [D] is overwritten. Barriers before and between, none after.
template <class T>
__device__ __forceinline__ void cholesky_whitening(int D, const SharedArray<T>& a, int stride,
                                                   const SharedArray<T>& diagonal, T* matrix) {
  const Place me = place();
  const bool fine = eliminate(D, a, stride, diagonal);
  __syncthreads();
  for (int i = me.warp; i < D; i += me.warps) {
    for (int j = me.lane; j < D; j += 32) {
      T entry = 0;
      if (!fine) {
        entry = kNaN<T>;
      } else if (i == j) {
        entry = diagonal[j];
      } else if (i < j) {
        entry = static_cast<T>(a[i * stride + j]) * static_cast<T>(diagonal[j]);
      }
      a[i * stride + j] = entry;
      matrix[i * D + j] = entry;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kCholeskyThreads) cholesky_kernel(CholeskyArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int D = static_cast<int>(in.width), stride = cholesky_stride(D);
  const int64_t g = blockIdx.x, base = g * D * D;
  const SharedArray<T> a(arena, 0, D * stride), diagonal(arena, D * stride * sizeof(T), D);
  const bool shrink = in.rho != nullptr;
  load_shrunk(D, in.blended + base, shrink, shrink ? in.rho[g] : T(0), in.eps, a, stride);
  cholesky_whitening(D, a, stride, diagonal, in.matrix + base);
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

// The transpose of inverse, NaN for groups with a nonzero info. inverse: element (g, i, j) at
// g * batch + i * row + j * column.
template <class T>
struct FlipArguments {
  int64_t groups, width, batch, row, column;
  const T* inverse;
  const int32_t* info;  // [G]
  T* matrix;            // [G, D, D]
};

template <class T>
__global__ void __launch_bounds__(256) flip_or_nan_kernel(FlipArguments<T> in) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, D = in.width;
  if (e >= in.groups * D * D) return;
  const int64_t g = e / (D * D), i = e / D % D, j = e % D;
  in.matrix[e] = in.info[g] == 0 ? in.inverse[g * in.batch + j * in.row + i * in.column] : kNaN<T>;
}

// The whitening matrix of blended [G, D, D] for D <= kCholeskyLimit.
template <class Device, class T>
void run_cholesky(Device& device, int64_t G, int64_t D, const T* blended, const T* rho, double eps,
                  T* matrix) {
  device.launch(cholesky_kernel<T>, G, cholesky_threads(D), cholesky_shared_bytes<T>(D),
                CholeskyArguments<T>{D, blended, rho, static_cast<T>(eps), matrix});
}

}  // namespace cuda
}  // namespace fastwhiten
