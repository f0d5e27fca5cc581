// A = cross diag(gamma), F = V^T A Q, R_ij = w_ij F_ij + (1 - w_ij) F_ji, core = V R V^T,
// inner = beta (1 - rho) core + beta rho trace(core) / D I ; grad_gamma_j = sum_i W_ij cross_ij.
//
// zca: V = U diag(1/s), Q = U, w_ij = s_i / (s_i + s_j): no gap between eigenvalues is divided by;
// diag(1/s) is applied with w. pca: V = W, Q = I, w_ij = l_i / (l_i - l_j), a tied pair takes the
// symmetric part. cholesky: V = W, Q = I, w = 1 above the diagonal, 0 below, 1/2 on it.
// D <= 64: one block per group, intermediate results stay in shared memory (81 KiB in float).
// Larger, or where a block may not have that much: one launch per product (matrices.cuh).
// Determinism: that of products.cuh.
#pragma once

#include <utility>

#include "../common/passes.h"
#include "matrices.cuh"
#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
struct BackwardMatrixArguments {
  int64_t groups, width;
  int kind;              // 0 zca, 1 pca, 2 cholesky
  const T* cross;        // [G, D, D]
  const T* eigenvalues;  // [G, D]; null for cholesky
  const T* basis;        // [G, D, D]; null for cholesky
  const T* matrix;       // [G, D, D]
  const T* gamma;        // [G * D] or null
  const T* rho;          // [G] or null
  T batch_weight;
  T tie;          // relative gap under which two eigenvalues are tied
  T* inner;       // [G, D, D]
  T* grad_gamma;  // [G * D]

  // V without its diagonal factor
  __device__ __forceinline__ const T* outer() const { return kind == 0 ? basis : matrix; }
  __device__ __forceinline__ T scaled_cross(int64_t g, int64_t k, int64_t j) const {
    const T value = cross[(g * width + k) * width + j];
    return gamma != nullptr ? value * gamma[g * width + j] : value;
  }
};

// R_ij / (s_i s_j) of the header for zca, s being the roots of eigenvalues, r their inverses.
template <class T>
__device__ __forceinline__ T weigh_zca(T of_ij, T of_ji, T si, T sj, T ri, T rj) {
  return (of_ij + of_ji) / (si + sj) * (ri * rj);
}

// R_ij of the header, zca: R_ij / (s_i s_j), from F_ij and F_ji. The result for (j, i) has the same
// bits where R is symmetric.
template <class T>
__device__ __forceinline__ T weigh(const BackwardMatrixArguments<T>& in, int64_t g, int64_t i,
                                   int64_t j, T of_ij, T of_ji) {
  if (in.kind == 2) return i > j ? of_ji : of_ij;
  const T li = in.eigenvalues[g * in.width + i], lj = in.eigenvalues[g * in.width + j];
  if (in.kind == 0) {
    const T si = sqrt(li), sj = sqrt(lj);
    return weigh_zca(of_ij, of_ji, si, sj, T(1) / si, T(1) / sj);
  }
  const T gap = li - lj, most = li > lj ? li : lj;
  const bool tied = i == j || fabs(gap) <= in.tie * most;
  return tied ? (of_ij + of_ji) / 2 : (li * of_ij - lj * of_ji) / gap;
}

// Of a group's columns [first, first + 64), by all threads: grad_gamma, the sums over rows i of
// W_ij cross_ij. Returns the thread's share of the sum of all from_ij outer_ij. Barrier inside;
// scratch [4, 64] may be reused after the next one.
template <class T>
__device__ __forceinline__ T sum_columns(const BackwardMatrixArguments<T>& in, int64_t g,
                                         int64_t first, const T* from,
                                         const SharedArray<T>& scratch) {
  constexpr int kParts = kThreads / kTile;
  const int thread = static_cast<int>(threadIdx.x), column = thread % kTile, part = thread / kTile;
  const int64_t D = in.width, j = first + column, group = g * D * D;
  T own = 0, trace = 0;
  if (j < D) {
#pragma unroll 8
    for (int64_t i = part; i < D; i += kParts) {
      const int64_t e = group + i * D + j;
      own += in.matrix[e] * in.cross[e];
      if (from != nullptr) trace += from[e] * in.outer()[e];
    }
  }
  scratch[part * kTile + column] = own;
  __syncthreads();
  if (part == 0 && j < D) {
    T sum = own;
    for (int n = 1; n < kParts; ++n) sum += scratch[n * kTile + column];
    in.grad_gamma[g * D + j] = sum;
  }
  return trace;
}

template <class T>
__device__ __forceinline__ T shrunk(const BackwardMatrixArguments<T>& in, int64_t g, T core,
                                    bool diagonal, T trace) {
  const T rho = in.rho != nullptr ? in.rho[g] : T(0);
  const T kept = in.batch_weight * (T(1) - rho) * core;
  return diagonal && rho != T(0) ? kept + in.batch_weight * rho * trace / static_cast<T>(in.width)
                                 : kept;
}

// Shared memory of a group's block, squares of [64, 64]: V, V^T, results, the right factor. Where
// teams are added up, that is done in the last two, and every result has the place of the one
// before; else results alternate.
template <class T>
struct BackwardMatrixShared {
  static constexpr int kSquare = kTile * kTile;
  static constexpr int kV = 0, kFlipped = kSquare, kFirst = 2 * kSquare, kSecond = 3 * kSquare,
                       kRight = 4 * kSquare, kNumbers = 5 * kSquare;
  static constexpr int64_t kBytes = (kNumbers + 2 * kTile + kReduceWords) * sizeof(T);
  static_assert(kGatherElements<T> <= 2 * kSquare, "gather works in two squares");
  __device__ explicit BackwardMatrixShared(char* arena)
      : squares(arena, 0, kNumbers),
        two(arena, kSecond * sizeof(T), 2 * kSquare),
        roots(arena, kNumbers * sizeof(T), kTile),
        inverse(arena, (kNumbers + kTile) * sizeof(T), kTile),
        scratch(arena, (kNumbers + 2 * kTile) * sizeof(T), kReduceWords) {}
  // The place of the n-th product.
  static __device__ __forceinline__ int result(int n) {
    return kTeams<T> > 1 || n % 2 == 0 ? kFirst : kSecond;
  }
  SharedArray<T> squares, two, roots, inverse, scratch;
};

// The place of a thread's n-th four of a square: row and first column.
__device__ __forceinline__ int square_row(int n) {
  return static_cast<int>(threadIdx.x) / (kTile / 4) + n * (4 * kThreads / kTile);
}
__device__ __forceinline__ int square_column() {
  return static_cast<int>(threadIdx.x) % (kTile / 4) * 4;
}

// V, V^T, A, and roots of eigenvalues. Barrier after.
template <class T>
__device__ __forceinline__ void load_group(const BackwardMatrixArguments<T>& in, int64_t g,
                                           const BackwardMatrixShared<T>& at) {
  using Shared = BackwardMatrixShared<T>;
  const int D = static_cast<int>(in.width), j = square_column();
  const T* const outer = in.outer() + g * D * D;
#pragma unroll
  for (int n = 0; n < kGathered; ++n) {
    const int i = square_row(n);
    Four<T> of_v, of_a;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const bool inside = i < D && j + u < D;
      of_v.v[u] = inside ? outer[i * D + j + u] : T(0);
      of_a.v[u] = inside ? in.scaled_cross(g, i, j + u) : T(0);
      at.squares[Shared::kFlipped + slab_place(j + u, i)] = of_v.v[u];
    }
    store4(at.squares, Shared::kV + slab_place(i, j), of_v);
    store4(at.squares, Shared::kRight + slab_place(i, j), of_a);
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (in.kind == 0 && thread < D) {
    const T root = sqrt(in.eigenvalues[g * D + thread]);
    at.roots[thread] = root;
    at.inverse[thread] = T(1) / root;
  }
}

// The n-th product, of squares a^T b; flipped: stored as its transpose. Barrier after.
template <class T>
__device__ __forceinline__ void multiply_squares(const BackwardMatrixShared<T>& at, int n, int a,
                                                 int b, bool flipped) {
  constexpr int kOwnDepth = kTile / kTeams<T>;
  TeamSums<T> sums;
  multiply<false, 2>(at.squares, a, b, static_cast<int>(threadIdx.x) / kTeamThreads<T> * kOwnDepth,
                     kOwnDepth, sums);
  gather(at.two, sums, [&](int, int i, int j, const Four<T>& four) {
    const int to = BackwardMatrixShared<T>::result(n);
    if (!flipped) return store4(at.squares, to + slab_place(i, j), four);
#pragma unroll
    for (int u = 0; u < 4; ++u) at.squares[to + slab_place(j + u, i)] = four.v[u];
  });
}

// R, the right factor, from F. Barrier after.
template <class T>
__device__ __forceinline__ void weigh_square(const BackwardMatrixArguments<T>& in, int64_t g,
                                             const BackwardMatrixShared<T>& at, int f) {
  const int D = static_cast<int>(in.width), j = square_column();
#pragma unroll 1
  for (int n = 0; n < kGathered; ++n) {
    const int i = square_row(n);
    const Four<T> row = load4(at.squares, f + slab_place(i, j));
    Four<T> weighed;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      weighed.v[u] = 0;
      if (i >= D || j + u >= D) continue;
      const T of_ji = at.squares[f + slab_place(j + u, i)];
      weighed.v[u] = in.kind == 0 ? weigh_zca<T>(row.v[u], of_ji, at.roots[i], at.roots[j + u],
                                                 at.inverse[i], at.inverse[j + u])
                                  : weigh<T>(in, g, i, j + u, row.v[u], of_ji);
    }
    store4(at.squares, BackwardMatrixShared<T>::kRight + slab_place(i, j), weighed);
  }
}

// A whole group in one block: D <= 64.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_matrix_kernel(BackwardMatrixArguments<T> in) {
  using Shared = BackwardMatrixShared<T>;
  FASTWHITEN_SHARED_MEMORY(arena);
  const Shared at(arena);
  const int64_t g = blockIdx.x;
  const int D = static_cast<int>(in.width), thread = static_cast<int>(threadIdx.x);
  load_group(in, g, at);
  sum_columns<T>(in, g, 0, nullptr, at.two);  // its barrier is the one after load_group
  const bool zca = in.kind == 0;
  multiply_squares(at, 0, Shared::kV, Shared::kRight, zca);  // V^T A
  __syncthreads();
  if (zca) {
    multiply_squares(at, 1, Shared::result(0), Shared::kV, false);  // (V^T A) U
    __syncthreads();
  }
  weigh_square(in, g, at, Shared::result(zca));
  __syncthreads();
  multiply_squares(at, 2, Shared::kFlipped, Shared::kRight, true);  // V R
  __syncthreads();
  multiply_squares(at, 3, Shared::result(2), Shared::kFlipped, false);  // (V R) V^T
  __syncthreads();
  const int core = Shared::result(3);
  const T diagonal =
      thread < D ? static_cast<T>(at.squares[core + slab_place(thread, thread)]) : T(0);
  const T trace = in.rho != nullptr ? block_sum(diagonal, at.scratch) : T(0);
  for (int e = thread; e < D * D; e += kThreads) {
    const int i = e / D, j = e % D;
    const T of_core = at.squares[core + slab_place(i > j ? i : j, i > j ? j : i)];
    in.inner[(g * D + i) * D + j] = shrunk(in, g, of_core, i == j, trace);
  }
}

// The four products of a larger group, as operands of matrix_product_kernel.
template <class T>
struct BackwardMatrixProduct {
  using Element = T;
  MatrixShape shape;
  BackwardMatrixArguments<T> in;
  const T* from;    // [G, D, D], the product before
  T* to;            // [G, D, D]
  const T* traces;  // [G, parts]; null without rho
  int parts = 0;

  __device__ __forceinline__ int64_t at(int64_t g, int64_t i, int64_t j) const {
    return (g * in.width + i) * in.width + j;
  }
};

template <class T>
struct OuterTimesCross : BackwardMatrixProduct<T> {  // V^T A
  static constexpr bool kADepthFirst = false, kBDepthFirst = false;
  __device__ T a(int64_t g, int64_t k, int64_t i) const {
    return this->in.outer()[this->at(g, k, i)];
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const { return this->in.scaled_cross(g, k, j); }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    this->to[this->at(g, i, j)] = sum;
  }
};

template <class T>
struct TimesBasis : BackwardMatrixProduct<T> {  // (V^T A) U
  static constexpr bool kADepthFirst = true, kBDepthFirst = false;
  __device__ T a(int64_t g, int64_t k, int64_t i) const { return this->from[this->at(g, i, k)]; }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return this->in.basis[this->at(g, k, j)];
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    this->to[this->at(g, i, j)] = sum;
  }
};

template <class T>
struct OuterTimesWeighed : BackwardMatrixProduct<T> {  // V R
  static constexpr bool kADepthFirst = true, kBDepthFirst = false;
  __device__ T a(int64_t g, int64_t k, int64_t i) const {
    return this->in.outer()[this->at(g, i, k)];
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return weigh(this->in, g, k, j, this->from[this->at(g, k, j)], this->from[this->at(g, j, k)]);
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    this->to[this->at(g, i, j)] = sum;
  }
};

template <class T>
struct TimesOuter : BackwardMatrixProduct<T> {  // (V R) V^T, lower tiles
  static constexpr bool kADepthFirst = true, kBDepthFirst = true;
  __device__ T a(int64_t g, int64_t k, int64_t i) const { return this->from[this->at(g, i, k)]; }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return this->in.outer()[this->at(g, j, k)];
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    T trace = 0;
    for (int n = 0; i == j && n < this->parts; ++n) trace += this->traces[g * this->parts + n];
    const T value = shrunk(this->in, g, sum, i == j, trace);
    this->to[this->at(g, i, j)] = this->to[this->at(g, j, i)] = value;
  }
};

// Parts of the trace of (V R) V^T, from V R; and grad_gamma. One block per 64 columns of a group.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_sums_kernel(BackwardMatrixArguments<T> in, int parts, const T* from, T* traces) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> columns(arena, 0, kThreads);
  const SharedArray<T> scratch(arena, kThreads * sizeof(T), kReduceWords);
  const int64_t g = blockIdx.x / parts, first = int64_t{blockIdx.x} % parts * kTile;
  const T own = sum_columns(in, g, first, traces != nullptr ? from : nullptr, columns);
  if (traces == nullptr) return;
  const T sum = block_sum(own, scratch);
  if (threadIdx.x == 0) traces[blockIdx.x] = sum;
}

template <class Device, class T, class Op>
void multiply_matrices(Device& device, const Op& op) {
  device.launch(matrix_product_kernel<Op>, matrix_blocks(op.shape), kThreads, kMatrixSharedBytes<T>,
                op);
}

template <class Device, class T>
void run_backward_matrix(Device& device, const BackwardMatrix<T>& args) {
  const T tie = tie_tolerance<T>(args.D);
  const BackwardMatrixArguments<T> in{args.G,
                                      args.D,
                                      static_cast<int>(args.kind),
                                      args.cross,
                                      args.eigenvalues,
                                      args.basis,
                                      args.matrix,
                                      args.gamma,
                                      args.rho,
                                      static_cast<T>(args.batch_weight),
                                      tie,
                                      args.inner,
                                      args.grad_gamma};
  if (args.D <= kTile && BackwardMatrixShared<T>::kBytes <= device.shared_limit()) {
    device.launch(backward_matrix_kernel<T>, args.G, kThreads, BackwardMatrixShared<T>::kBytes, in);
    return;
  }
  const MatrixShape full{args.G, args.D, args.D, args.D, 1, false},
      lower{args.G, args.D, args.D, args.D, 1, true};
  auto first = device.template allocate<T>(args.G * args.D * args.D),
       second = device.template allocate<T>(args.G * args.D * args.D);
  const int parts = static_cast<int>(ceil_div(args.D, kTile));
  auto trace = device.template allocate<T>(args.rho != nullptr ? args.G * parts : 0);
  T *from = first.get(), *to = second.get();
  multiply_matrices<Device, T>(device, OuterTimesCross<T>{{full, in, nullptr, from, nullptr}});
  if (args.kind == 0) {
    multiply_matrices<Device, T>(device, TimesBasis<T>{{full, in, from, to, nullptr}});
    std::swap(from, to);
  }
  multiply_matrices<Device, T>(device, OuterTimesWeighed<T>{{full, in, from, to, nullptr}});
  T* const traces = args.rho != nullptr ? trace.get() : nullptr;
  device.launch(backward_sums_kernel<T>, args.G * parts, kThreads,
                static_cast<int64_t>((kThreads + kReduceWords) * sizeof(T)), in, parts,
                static_cast<const T*>(to), traces);
  multiply_matrices<Device, T>(
      device, TimesOuter<T>{{lower, in, to, args.inner, static_cast<const T*>(traces),
                             args.rho != nullptr ? parts : 0}});
}

}  // namespace cuda
}  // namespace fastwhiten
