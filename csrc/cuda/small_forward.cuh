// A whole forward of one group in one block, for few rows: statistics -> eigensolver -> W -> y.
//
// The formulas are those of the stages (statistics.cuh, intensity.cuh, eigh.cuh, factor.cuh,
// cholesky.cuh, apply.cuh). x is read once and stays in shared memory, centred; so do the matrices,
// from the covariance to W; nothing waits for another launch. The mean is taken of differences from
// row 0, with weights from the heaviest row, and corrected once; sums over rows are made of sums
// over 32 of them. Bytes: x and y once, the matrices once. Determinism: one order of every sum; a
// group never sees its neighbours. Shared memory: the eigensolver's (36 KiB for float at D = 64)
// and x: M (N + 4) numbers, N = 32 or 64. Serves every kind and shrinkage, at most 512 rows, D
// <= 64. Narrow groups (D <= 16) only where a warp's own eigensolver is not in play (takes_blocks;
// cholesky; the backward), and while all their blocks run at once: beyond, the stages' tiles, which
// take several groups, do better.
#pragma once

#include "../common/layout.h"
#include "block_whitening.cuh"
#include "cholesky.cuh"
#include "eigh.cuh"
#include "heaviest.cuh"
#include "moments.cuh"
#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int64_t kSmallRows = 512;  // beyond, several blocks a group are faster than one

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

// Where weights of rows end: nvcc loads four at once though the last are not asked for.
__host__ __device__ constexpr int64_t row_weights(int64_t rows) { return (rows + 3) / 4 * 4; }

template <class T, int N>
__host__ __device__ constexpr int64_t small_forward_bytes(int64_t rows) {
  return EigenShared<T, N>::kBytes +
         (rows * kRowStride<N> + row_weights(rows)) * static_cast<int64_t>(sizeof(T));
}

// The rows of a group in shared memory, zeros beyond its width, and the weights of rows.
template <class T, int N>
struct SmallRows {
  static constexpr int64_t kFirst = EigenShared<T, N>::kBytes;
  __device__ SmallRows(char* arena, int rows_)
      : rows(rows_),
        x(arena, kFirst, int64_t{rows_} * kRowStride<N>),
        p(arena, kFirst + int64_t{rows_} * kRowStride<N> * static_cast<int64_t>(sizeof(T)), rows_) {
  }
  int rows;
  SharedArray<T> x;  // [rows, N + 4]
  SharedArray<T> p;  // [rows]; nothing where all weights are the same
};

// Row r, column c of a group and its offset from row 0, column 0 in memory, for everything that a
// block of 4 N threads loads: f(r, c, offset), columns beyond D with offset 0. Neighbours in memory
// together, and no division an element.
template <int N, class F>
__device__ __forceinline__ void each_entry(const Layout& s, int rows, const F& f) {
  const int thread = static_cast<int>(threadIdx.x), D = static_cast<int>(s.width);
  if (s.planes()) {
    for (int r = thread % 32; r < rows; r += 32) {
      const int64_t row = row_offset(s, r);
#pragma unroll 8
      for (int c = thread / 32; c < N; c += N / 8) f(r, c, c < D ? row + c * s.length : 0);
    }
  } else {
    const int c = thread % N;
#pragma unroll 8
    for (int r = thread / N; r < rows; r += 4) f(r, c, c < D ? r * s.channels + c : 0);
  }
}

// x of group g, as it is, and the weights. Barrier after.
template <int N, class In, class T>
__device__ __forceinline__ void load_rows(const SmallForward<In, T>& in, int64_t g,
                                          const SmallRows<T, N>& at) {
  const int D = static_cast<int>(in.s.width);
  const In* const x = in.x + g * D * in.s.length;
  each_entry<N>(in.s, at.rows, [&](int r, int c, int64_t offset) {
    at.x[r * kRowStride<N> + c] = c < D ? convert<T>(x[offset]) : T(0);
  });
  if (in.p != nullptr) {
    for (int r = static_cast<int>(threadIdx.x); r < at.rows; r += kBlockThreads<N>) {
      at.p[r] = in.p[r];
    }
  }
  __syncthreads();
}

// The row of largest weight, found by each warp for itself.
template <class T, int N>
__device__ __forceinline__ int heaviest_row(const SmallRows<T, N>& at) {
  Heaviest<T> best;
  for (int r = place().lane; r < at.rows; r += 32) best.take(at.p[r], r);
  return static_cast<int>(warp_heaviest(best).row);
}

// Subtracts the weighted mean from x, four threads a column, and stores it. `scratch` [8, N].
// Barrier after.
template <int N, class In, class T>
__device__ __forceinline__ void center_rows(const SmallForward<In, T>& in, int64_t g,
                                            const SmallRows<T, N>& at,
                                            const SharedArray<T>& scratch) {
  const int D = static_cast<int>(in.s.width), c = static_cast<int>(threadIdx.x) % N;
  const int part = static_cast<int>(threadIdx.x) / N;
  const T uniform = T(1) / static_cast<T>(at.rows);
  const T origin = at.x[(in.p != nullptr ? heaviest_row(at) : 0) * kRowStride<N> + c];
  // The weighted sum of f over this thread's rows, of sums of 32, then over the four threads.
  const auto sum_of = [&](int set, const auto& f) {
    T total = 0;
    for (int from = part; from < at.rows; from += 128) {
      const int last = from + 128 < at.rows ? from + 128 : at.rows;
      T sum = 0;
#pragma unroll 8
      for (int r = from; r < last; r += 4) {
        const T value = f(r * kRowStride<N> + c);
        sum += in.p != nullptr ? static_cast<T>(at.p[r]) * value : value;
      }
      total += sum;
    }
    scratch[(4 * set + part) * N + c] = total;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int other = 0; other < 4; ++other) sum += scratch[(4 * set + other) * N + c];
    return in.p != nullptr ? sum : sum * uniform;
  };
  const T shift = sum_of(0, [&](int e) { return static_cast<T>(at.x[e]) - origin; });
  // The rest that rounding left; weights that do not sum to 1 in the last bit stay out of it.
  const T rest = sum_of(1, [&](int e) {
    const T centered = static_cast<T>(at.x[e]) - origin - shift;
    at.x[e] = centered;
    return centered;
  });
#pragma unroll 8
  for (int r = part; r < at.rows; r += 4) at.x[r * kRowStride<N> + c] -= rest;
  if (part == 0 && c < D) in.mean[g * D + c] = origin + (shift + rest);
  __syncthreads();
}

// tile = sum over rows of a's and b's products; left(r) is a factor of row r, in sums of 32 rows.
template <class T, int N, class Weight>
__device__ __forceinline__ BlockTile<T, N> product_over_rows(int rows, const SharedArray<T>& a,
                                                             const SharedArray<T>& b,
                                                             const Weight& weight) {
  using Tile = BlockTile<T, N>;
  Tile total;
  for (int from = 0; from < rows; from += 32) {
    Tile part;
    add_product(
        part, rows - from < 32 ? rows - from : 32,
        [&](int k, T(&row)[Tile::kRows]) {
          load_many(a, (from + k) * kRowStride<N> + Tile::row(), row);
          weight(from + k, row);
        },
        [&](int k) { return load4(b, (from + k) * kRowStride<N> + Tile::column()); });
#pragma unroll
    for (int u = 0; u < Tile::kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) total.v[u][w] += part.v[u][w];
    }
  }
  return total;
}

// covariance = sum_n p_n xc_n xc_n^T, and blended, in the views' matrix as well. Barriers between
// and after.
template <int N, class In, class T>
__device__ __forceinline__ void small_covariance(const SmallForward<In, T>& in, int64_t g,
                                                 const SmallRows<T, N>& at,
                                                 const EigenShared<T, N>& s) {
  using Tile = BlockTile<T, N>;
  const int D = s.D;
  Tile tile;
  if (in.p != nullptr) {
    tile = product_over_rows<T, N>(at.rows, at.x, at.x, [&](int r, T(&row)[Tile::kRows]) {
      const T share = at.p[r];
#pragma unroll
      for (int u = 0; u < Tile::kRows; ++u) row[u] *= share;
    });
  } else {
    tile = product_over_rows<T, N>(at.rows, at.x, at.x, [](int, T(&)[Tile::kRows]) {});
    const T uniform = T(1) / static_cast<T>(at.rows);
#pragma unroll
    for (int u = 0; u < Tile::kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) tile.v[u][w] *= uniform;
    }
  }
  tile.store(s.basis);
  __syncthreads();
  fill_rows<N>(s.matrix, [&](int i, int j, int) {  // one triangle, mirrored
    const T own = s.basis[(i > j ? i : j) * kRowStride<N> + (i > j ? j : i)];
    if (i >= D || j >= D) return T(0);
    const int64_t here = (g * D + i) * D + j;
    in.covariance[here] = own;
    if (in.running == nullptr) return own;
    const T old = (in.running[here] + in.running[(g * D + j) * D + i]) / 2;
    return in.blended[here] = in.batch_weight * own + (1 - in.batch_weight) * old;
  });
  __syncthreads();
}

// rho, in every thread, and stored; 0 without shrinkage. One barrier inside.
template <int N, class In, class T>
__device__ __forceinline__ T small_intensity(const SmallForward<In, T>& in, int64_t g,
                                             const SmallRows<T, N>& at,
                                             const SharedArray<T>& scratch) {
  static_assert(kMoments <= kScratchRows, "the places of the sums");
  if (in.method == kNone) return T(0);
  T rho = in.value;
  if (in.method != kFixed) {
    const IntensityArguments<T> of{in.s.width, at.rows,         in.method, in.value, in.covariance,
                                   in.running, in.batch_weight, in.p,      in.rho};
    T sums[kMoments] = {};
    add_moments(of, g, sums);
    for (int r = static_cast<int>(threadIdx.x); r < at.rows; r += kBlockThreads<N>) {
      T square = 0;
      for (int c = 0; c < N; c += 4) {
        const Four<T> four = load4(at.x, r * kRowStride<N> + c);
#pragma unroll
        for (int w = 0; w < 4; ++w) square += four.v[w] * four.v[w];
      }
      const T share = in.p != nullptr ? static_cast<T>(at.p[r]) : T(1) / static_cast<T>(at.rows);
      sums[kFourth] += share * square * square;
    }
    block_sums(sums, scratch);
    rho = intensity_of(of, sums);
  }
  if (threadIdx.x == 0) in.rho[g] = rho;
  return rho;
}

// W = L^{-T} into global memory and the views' matrix. Barriers between and after.
template <int N, class In, class T>
__device__ __forceinline__ void small_cholesky(const SmallForward<In, T>& in, int64_t g, const T* a,
                                               T rho, const EigenShared<T, N>& s) {
  load_shrunk(s.D, a, in.method != kNone, rho, in.eps, s.matrix, kRowStride<N>);
  cholesky_whitening(s.D, s.matrix, kRowStride<N>, s.signs, in.matrix + g * s.D * s.D);
  __syncthreads();
}

// y = x W gamma + beta.
template <int N, class In, class T>
__device__ __forceinline__ void small_apply(const SmallForward<In, T>& in, int64_t g,
                                            const EigenShared<T, N>& s, const SmallRows<T, N>& at) {
  using Tile = BlockTile<T, N>;
  const int D = s.D;
  In* const y = in.y + g * D * in.s.length;
  T gamma[4], beta[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int c = Tile::column() + w;
    gamma[w] = in.gamma != nullptr && c < D ? in.gamma[g * D + c] : T(1);
    beta[w] = in.beta != nullptr && c < D ? in.beta[g * D + c] : T(0);
  }
  for (int first = 0; first < at.rows; first += N) {
    const auto row_of = [&](int row) { return first + row < at.rows ? first + row : at.rows - 1; };
    Tile tile;
    add_by_rows(
        tile,
        [&](int row, int k, auto& to) { load_many(at.x, row_of(row) * kRowStride<N> + k, to); },
        columns_of<N>(s.matrix));
#pragma unroll
    for (int u = 0; u < Tile::kRows; ++u) {
      const int r = first + Tile::row() + u;
      if (r >= at.rows) continue;
      In* const row = y + row_offset(in.s, r);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int c = Tile::column() + w;
        if (c < D) row[c * in.s.length] = round_to<In>(tile.v[u][w] * gamma[w] + beta[w]);
      }
    }
  }
}

// One block per group.
template <int N, class In, class T>
__global__ void __launch_bounds__(kBlockThreads<N>, 1)
    small_forward_kernel(SmallForward<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int D = static_cast<int>(in.s.width);
  const int64_t g = blockIdx.x, square = int64_t{D} * D;
  const SmallRows<T, N> at(arena, static_cast<int>(in.s.rows()));
  const EigenShared<T, N> shared(arena, D);
  load_rows(in, g, at);
  center_rows(in, g, at, shared.basis);
  small_covariance(in, g, at, shared);
  const T* const a = (in.running != nullptr ? in.blended : in.covariance) + g * square;
  const T rho = small_intensity(in, g, at, shared.scratch);
  if (in.kind == 2) {
    small_cholesky(in, g, a, rho, shared);
  } else {
    const T* const start = in.start != nullptr ? in.start + g * square : nullptr;
    block_eigh(shared, a, start, in.basis + g * square);
    block_whitening(shared, in.kind, in.method != kNone, rho, in.eps, in.eigenvalues + g * D,
                    in.basis + g * square, in.matrix + g * square);
  }
  small_apply(in, g, shared, at);
}

// solves: whether the pass has an eigensolver.
inline bool small_shape(const Layout& s, bool solves) {
  constexpr int64_t kAtOnce = 264;  // two blocks for every multiprocessor of the largest devices
  const bool blocks = s.width > kWarpUpTo || s.groups <= kAtOnce;
  return blocks && (!solves || takes_blocks(s.groups, s.width)) && s.width <= kBothUpTo &&
         s.rows() <= kSmallRows;
}

// False, and nothing, if the case is not one for this kernel.
template <class Device, class In, class T>
bool run_small_forward(Device& device, const SmallForward<In, T>& in) {
  const auto run = [&](auto* kernel, int threads, int64_t bytes) {
    if (!small_shape(in.s, in.kind != 2) || bytes > device.shared_limit()) return false;
    device.launch(kernel, in.s.groups, threads, bytes, in);
    return true;
  };
  const int64_t rows = in.s.rows();
  return in.s.width <= 32 ? run(small_forward_kernel<32, In, T>, kBlockThreads<32>,
                                small_forward_bytes<T, 32>(rows))
                          : run(small_forward_kernel<64, In, T>, kBlockThreads<64>,
                                small_forward_bytes<T, 64>(rows));
}

}  // namespace cuda
}  // namespace fastwhiten
