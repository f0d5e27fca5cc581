// A whole forward of one group in one block, for few rows: statistics -> eigensolver -> W -> y.
//
// The formulas are those of the stages (statistics.cuh, intensity.cuh, eigh.cuh, factor.cuh,
// cholesky.cuh, apply.cuh). x is read once and stays in shared memory, centred; nothing waits for
// another launch. The mean is taken of differences from row 0, with weights from the heaviest row,
// and corrected once; sums over rows are made of sums over 32 of them.
// Bytes: x and y once, the matrices once or twice. Determinism: one order of every sum; a group
// never sees its neighbours. Shared memory: two-sided Jacobi's (36 KiB for float at D = 64) and x:
// M (D + 1) numbers. Serves every kind and shrinkage, at most 512 rows, D <= 64. Narrow groups
// (D <= 16) only where a warp's own eigensolver is not in play (cholesky; the backward), and while
// all their blocks run at once: beyond, the stages' tiles, which take several groups, do better.
#pragma once

#include "../common/layout.h"
#include "cholesky.cuh"
#include "eigh.cuh"
#include "heaviest.cuh"
#include "moments.cuh"
#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int64_t kSmallRows = 512;  // beyond, several blocks a group are faster than one
constexpr int kSmallThreads = 512;   // 16 warps, a tile of 4 rows of D = 64 each

template <class In, class T>
struct SmallForward {
  Layout s;
  const In* x;       // [M, C] or [N, C, L]
  const T* gamma;    // [C] or null
  const T* beta;     // [C] or null
  const T* p;        // [M] or null for 1 / M
  const T* running;  // [G, D, D] or null
  T batch_weight, eps;
  int64_t kind;    // 0 zca, 1 pca, 2 cholesky
  int method;      // a Method
  T value;         // of kFixed
  const T* start;  // [G, D, D] or null: where the eigensolver begins
  In* y;           // like x
  T* mean;         // [C]
  T* covariance;   // [G, D, D]
  T* blended;      // [G, D, D], or null without running
  T* eigenvalues;  // [G, D]; not written for cholesky
  T* basis;        // [G, D, D]; not written for cholesky
  T* matrix;       // [G, D, D]
  T* rho;          // [G], or null without shrinkage
};

template <class T>
__host__ __device__ constexpr int64_t small_forward_bytes(int64_t rows, int64_t D) {
  return eigen_shared_bytes<T>(static_cast<int>(D), true) +
         (rows * (D / 2 * 2 + 1) + rows) * static_cast<int64_t>(sizeof(T));
}

// The rows of a group in shared memory, and the weights of rows.
template <class T>
struct SmallRows {
  __device__ SmallRows(char* arena, int rows_, int width)
      : rows(rows_),
        stride(width / 2 * 2 + 1),
        x(arena, eigen_shared_bytes<T>(width, true), int64_t{rows_} * stride),
        p(arena,
          eigen_shared_bytes<T>(width, true) +
              int64_t{rows_} * stride * static_cast<int64_t>(sizeof(T)),
          rows_) {}
  int rows, stride;  // odd: a column's rows lie in different banks
  SharedArray<T> x;  // [rows, stride]
  SharedArray<T> p;  // [rows]
};

// x of group g, as it is, and the weights. Barrier after.
template <class In, class T>
__device__ __forceinline__ void load_rows(const SmallForward<In, T>& in, int64_t g,
                                          const SmallRows<T>& at) {
  const int D = static_cast<int>(in.s.width), count = at.rows * D;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kSmallThreads) {
    const int r = in.s.planes() ? e % at.rows : e / D, c = in.s.planes() ? e / at.rows : e % D;
    at.x[r * at.stride + c] = convert<T>(in.x[row_offset(in.s, r) + (g * D + c) * in.s.length]);
  }
  for (int r = static_cast<int>(threadIdx.x); r < at.rows; r += kSmallThreads) {
    at.p[r] = in.p != nullptr ? in.p[r] : T(1) / static_cast<T>(at.rows);
  }
  __syncthreads();
}

// The row of largest weight, found by each warp for itself.
template <class T>
__device__ __forceinline__ int heaviest_row(const SmallRows<T>& at) {
  Heaviest<T> best;
  for (int r = place().lane; r < at.rows; r += 32) best.take(at.p[r], r);
  return static_cast<int>(warp_heaviest(best).row);
}

// Subtracts the weighted mean from x, a warp a column, and stores it. Barrier after.
template <class In, class T>
__device__ __forceinline__ void center_rows(const SmallForward<In, T>& in, int64_t g,
                                            const SmallRows<T>& at) {
  const Place me = place();
  const int D = static_cast<int>(in.s.width), first = in.p != nullptr ? heaviest_row(at) : 0;
  for (int c = me.warp; c < D; c += me.warps) {
    const T origin = at.x[first * at.stride + c];
    __syncwarp();
    T sum = 0;
    for (int r = me.lane; r < at.rows; r += 32) {
      const T moved = static_cast<T>(at.x[r * at.stride + c]) - origin;
      at.x[r * at.stride + c] = moved;
      sum += static_cast<T>(at.p[r]) * moved;
    }
    const T shift = warp_sum(sum);
    sum = 0;
    for (int r = me.lane; r < at.rows; r += 32) {
      const T centered = static_cast<T>(at.x[r * at.stride + c]) - shift;
      at.x[r * at.stride + c] = centered;
      sum += static_cast<T>(at.p[r]) * centered;
    }
    // The rest that rounding left; weights that do not sum to 1 in the last bit stay out of it.
    const T rest = warp_sum(sum);
    for (int r = me.lane; r < at.rows; r += 32) at.x[r * at.stride + c] -= rest;
    if (me.lane == 0) in.mean[g * D + c] = origin + (shift + rest);
  }
  __syncthreads();
}

// covariance = sum_n p_n xc_n xc_n^T, and blended. Barrier after.
template <int kChunks, class In, class T>
__device__ __forceinline__ void small_covariance(const SmallForward<In, T>& in, int64_t g,
                                                 const SmallRows<T>& at) {
  const Place me = place();
  const int D = static_cast<int>(in.s.width), step = kTileRows<kChunks>;
  for (int first = step * me.warp; first < D; first += step * me.warps) {
    Tile<T, kChunks> total = {};
    for (int from = 0; from < at.rows; from += 32) {
      const int depth = at.rows - from < 32 ? at.rows - from : 32;
      const auto part = warp_product<T, kChunks>(
          D, D, depth, first,
          [&](int i, int k) {
            return static_cast<T>(at.p[from + k]) *
                   static_cast<T>(at.x[(from + k) * at.stride + i]);
          },
          [&](int k, int j) { return static_cast<T>(at.x[(from + k) * at.stride + j]); });
#pragma unroll
      for (int r = 0; r < kTileRows<kChunks>; ++r) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) total.sum[r][c] += part.sum[r][c];
      }
    }
    store_tile(D, D, first, total, [&](int i, int j, T sum) {
      if (j > i) return;  // one triangle, mirrored
      const int64_t lower = (g * D + i) * D + j, upper = (g * D + j) * D + i;
      in.covariance[lower] = in.covariance[upper] = sum;
      if (in.running == nullptr) return;
      const T old = (in.running[lower] + in.running[upper]) / 2;
      in.blended[lower] = in.blended[upper] = in.batch_weight * sum + (1 - in.batch_weight) * old;
    });
  }
  __syncthreads();
}

// rho, in every thread, and stored; 0 without shrinkage. The sums work in the places of rotations,
// which the eigensolver writes behind a barrier only. One barrier inside.
template <class In, class T>
__device__ __forceinline__ T small_intensity(const SmallForward<In, T>& in, int64_t g,
                                             const SmallRows<T>& at, char* arena) {
  static_assert(kMoments * kReduceWords <= 3 * kOneSidedUpTo, "the places of rotations");
  if (in.method == kNone) return T(0);
  T rho = in.value;
  if (in.method != kFixed) {
    const IntensityArguments<T> of{in.s.width, at.rows,         in.method, in.value, in.covariance,
                                   in.running, in.batch_weight, in.p,      in.rho};
    T sums[kMoments] = {};
    add_moments(of, g, sums);
    const int r = static_cast<int>(threadIdx.x);  // a thread has a row: at most kSmallRows
    if (r < at.rows) {
      T square = 0;
      for (int c = 0; c < in.s.width; ++c) {
        const T xc = at.x[r * at.stride + c];
        square += xc * xc;
      }
      sums[kFourth] = static_cast<T>(at.p[r]) * square * square;
    }
    block_sums(sums, SharedArray<T>(arena, EigenLayout<T>::kRotations, kMoments * kReduceWords));
    rho = intensity_of(of, sums);
  }
  if (threadIdx.x == 0) in.rho[g] = rho;
  return rho;
}

// W = L^{-T} into global memory and the views' matrix. Barriers between and after.
template <class In, class T>
__device__ __forceinline__ void small_cholesky(const SmallForward<In, T>& in, int64_t g, const T* a,
                                               T rho, const EigenShared<T>& s) {
  load_shrunk(s.D, a, in.method != kNone, rho, in.eps, s.matrix, s.stride);
  cholesky_whitening(s.D, s.matrix, s.stride, s.signs, in.matrix + g * s.D * s.D);
  __syncthreads();
}

// l = (1 - rho) d + rho sum(d) / D + eps, and 1 / sqrt(l) into `signs`. Barriers around.
template <class In, class T>
__device__ __forceinline__ void small_spectrum(const SmallForward<In, T>& in, int64_t g, T rho,
                                               const EigenShared<T>& s) {
  const Place me = place();
  const int D = s.D, c = static_cast<int>(threadIdx.x);
  __syncthreads();  // d is there, and signs are read
  T keep = 1, shift = in.eps, d = 0;
  if (in.method != kNone) {
    T sum = 0;
    for (int i = me.lane; i < D; i += 32) sum += in.eigenvalues[g * D + i];
    keep = 1 - rho;
    shift = rho * warp_sum(sum) / static_cast<T>(D) + in.eps;
  }
  if (c < D) d = in.eigenvalues[g * D + c];
  __syncthreads();  // all have read d
  if (c < D) {
    const T l = keep * (d < T(0) ? T(0) : d) + shift;  // NaN stays NaN
    in.eigenvalues[g * D + c] = l;
    s.signs[c] = 1 / sqrt(l);
  }
  __syncthreads();
}

// W into global memory and, for what follows, into the views' matrix. Barrier after.
template <int kChunks, class In, class T>
__device__ __forceinline__ void small_matrix(const SmallForward<In, T>& in, int64_t g,
                                             const EigenShared<T>& s) {
  const Place me = place();
  const int D = s.D, step = kTileRows<kChunks>;
  const T* const u = in.basis + g * D * D;
  T* const w = in.matrix + g * D * D;
  for (int first = step * me.warp; first < D; first += step * me.warps) {
    Tile<T, kChunks> tile = {};
    if (in.kind == 0) {  // (U l^-1/4) (U l^-1/4)^T: symmetric to the last bit
      const auto half = [&](int i, int k) {
        return u[i * D + k] * sqrt(static_cast<T>(s.signs[k]));
      };
      tile =
          warp_product<T, kChunks>(D, D, D, first, half, [&](int k, int j) { return half(j, k); });
    }
    store_tile(D, D, first, tile, [&](int i, int j, T sum) {
      const T entry = in.kind == 0 ? sum : u[i * D + j] * static_cast<T>(s.signs[j]);
      w[i * D + j] = entry;
      s.matrix[i * s.stride + j] = entry;
    });
  }
  __syncthreads();
}

template <int kChunks, class In, class T>
__device__ __forceinline__ void small_apply(const SmallForward<In, T>& in, int64_t g,
                                            const EigenShared<T>& s, const SmallRows<T>& at) {
  const Place me = place();
  const int D = s.D, step = kTileRows<kChunks>;
  for (int first = step * me.warp; first < at.rows; first += step * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        at.rows, D, D, first, [&](int r, int k) { return static_cast<T>(at.x[r * at.stride + k]); },
        [&](int k, int c) { return static_cast<T>(s.matrix[k * s.stride + c]); });
    store_tile(at.rows, D, first, tile, [&](int r, int c, T sum) {
      const int64_t channel = g * D + c;
      if (in.gamma != nullptr) sum *= in.gamma[channel];
      if (in.beta != nullptr) sum += in.beta[channel];
      in.y[row_offset(in.s, r) + channel * in.s.length] = round_to<In>(sum);
    });
  }
}

// One block per group.
template <int kChunks, class In, class T>
__global__ void __launch_bounds__(kSmallThreads, 1) small_forward_kernel(SmallForward<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int D = static_cast<int>(in.s.width);
  const int64_t g = blockIdx.x, square = int64_t{D} * D;
  const SmallRows<T> at(arena, static_cast<int>(in.s.rows()), D);
  const EigenShared<T> shared(arena, 0, D, true);
  load_rows(in, g, at);
  center_rows(in, g, at);
  small_covariance<kChunks>(in, g, at);
  const T* const a = (in.running != nullptr ? in.blended : in.covariance) + g * square;
  const T rho = small_intensity(in, g, at, arena);
  if (in.kind == 2) {
    small_cholesky(in, g, a, rho, shared);
  } else {
    const T* const start = in.start != nullptr ? in.start + g * square : nullptr;
    two_sided_eigh<T, kChunks>(shared, a, start, in.eigenvalues + g * D, in.basis + g * square);
    small_spectrum(in, g, rho, shared);
    small_matrix<kChunks>(in, g, shared);
  }
  small_apply<kChunks>(in, g, shared, at);
}

// narrow: whether D <= kWarpUpTo may be served.
inline bool small_shape(const Layout& s, bool narrow) {
  constexpr int64_t kAtOnce = 264;  // two blocks for every multiprocessor of the largest devices
  const bool wide = s.width > kWarpUpTo || (narrow && s.groups <= kAtOnce);
  return wide && s.width <= kTwoSidedUpTo && s.rows() <= kSmallRows;
}

// False, and nothing, if the case is not one for this kernel.
template <class Device, class In, class T>
bool run_small_forward(Device& device, const SmallForward<In, T>& in) {
  const int64_t bytes = small_forward_bytes<T>(in.s.rows(), in.s.width);
  if (!small_shape(in.s, in.kind == 2) || bytes > device.shared_limit()) return false;
  auto* kernel = in.s.width <= 32 ? small_forward_kernel<1, In, T> : small_forward_kernel<2, In, T>;
  device.launch(kernel, in.s.groups, kSmallThreads, bytes, in);
  return true;
}

}  // namespace cuda
}  // namespace fastwhiten
