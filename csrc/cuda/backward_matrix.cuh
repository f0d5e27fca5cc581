// A = cross diag(gamma), F = V^T A Q, R_ij = w_ij F_ij + (1 - w_ij) F_ji, core = V R V^T,
// inner = beta (1 - rho) core + beta rho trace(core) / D I ; grad_gamma_j = sum_i W_ij cross_ij.
//
// zca: V = U diag(1/s), Q = U, w_ij = s_i / (s_i + s_j): no gap between eigenvalues is divided by;
// diag(1/s) is applied with w. pca: V = W, Q = I, w_ij = l_i / (l_i - l_j), a tied pair takes the
// symmetric part. cholesky: V = W, Q = I, w = 1 above the diagonal, 0 below, 1/2 on it.
// D <= 64: one block per group, intermediate results stay in shared memory (35 KiB in float).
// Larger: one launch per product (matrices.cuh). Determinism: every element is one sum, in order.
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

// R_ij of the header, zca: R_ij / (s_i s_j), from F_ij and F_ji. The result for (j, i) has the same
// bits where R is symmetric.
template <class T>
__device__ __forceinline__ T weigh(const BackwardMatrixArguments<T>& in, int64_t g, int64_t i,
                                   int64_t j, T of_ij, T of_ji) {
  if (in.kind == 2) return i > j ? of_ji : of_ij;
  const T li = in.eigenvalues[g * in.width + i], lj = in.eigenvalues[g * in.width + j];
  if (in.kind == 0) {
    const T si = sqrt(li), sj = sqrt(lj);
    return (of_ij + of_ji) / (si + sj) * (T(1) / si * (T(1) / sj));
  }
  const T gap = li - lj, most = li > lj ? li : lj;
  const bool tied = i == j || fabs(gap) <= in.tie * most;
  return tied ? (of_ij + of_ji) / 2 : (li * of_ij - lj * of_ji) / gap;
}

// grad_gamma of the channels [first, first + 64) of group g, by the first threads of a block.
template <class T>
__device__ __forceinline__ void sum_grad_gamma(const BackwardMatrixArguments<T>& in, int64_t g,
                                               int64_t first) {
  const int64_t D = in.width, j = first + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kTile || j >= D) return;
  T sum = 0;
#pragma unroll 8
  for (int64_t i = 0; i < D; ++i) {
    sum += in.matrix[(g * D + i) * D + j] * in.cross[(g * D + i) * D + j];
  }
  in.grad_gamma[g * D + j] = sum;
}

template <class T>
__device__ __forceinline__ T shrunk(const BackwardMatrixArguments<T>& in, int64_t g, T core,
                                    bool diagonal, T trace) {
  const T rho = in.rho != nullptr ? in.rho[g] : T(0);
  const T kept = in.batch_weight * (T(1) - rho) * core;
  return diagonal && rho != T(0) ? kept + in.batch_weight * rho * trace / static_cast<T>(in.width)
                                 : kept;
}

template <class T>
constexpr int64_t kBackwardMatrixSharedBytes = (4 * kSlab + kReduceWords) * sizeof(T);

// A whole group in one block: D <= 64. work [64, 64] in shared memory holds each product in turn.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_matrix_kernel(BackwardMatrixArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> a(arena, 0, kSlab), b(arena, kSlab * sizeof(T), kSlab);
  const SharedArray<T> work(arena, 2 * kSlab * sizeof(T), 2 * kSlab);
  const SharedArray<T> scratch(arena, 4 * kSlab * sizeof(T), kReduceWords);
  const int64_t g = blockIdx.x;
  const int D = static_cast<int>(in.width);
  const T* const outer = in.outer() + g * D * D;
  const auto outer_at = [&](int64_t k, int i) { return i < D ? outer[k * D + i] : T(0); };
  const auto outer_flipped = [&](int64_t k, int i) { return i < D ? outer[i * D + k] : T(0); };
  const auto cross_at = [&](int64_t k, int j) { return j < D ? in.scaled_cross(g, k, j) : T(0); };
  const auto work_flipped = [&](int64_t k, int i) {
    return work[i * kStride + static_cast<int>(k)];
  };
  const auto weighed = [&](int64_t k, int j) {
    const int i = static_cast<int>(k);
    return j < D ? weigh<T>(in, g, i, j, work[i * kStride + j], work[j * kStride + i]) : T(0);
  };
  // Work is written right after a product: all of it was staged before that product's last barrier.
  const auto keep = [&](Sums<T>& sums) {
    sums.each([&](int i, int j, T sum) { work[i * kStride + j] = sum; });
  };
  sum_grad_gamma(in, g, 0);
  {
    Sums<T> sums;  // V^T A
    product(a, b, 0, D, false, outer_at, false, cross_at, sums);
    keep(sums);
  }
  if (in.kind == 0) {
    Sums<T> sums;  // (V^T A) U
    product(a, b, 0, D, true, work_flipped, false, outer_at, sums);
    keep(sums);
  }
  {
    Sums<T> sums;  // V R
    product(a, b, 0, D, true, outer_flipped, false, weighed, sums);
    keep(sums);
  }
  {
    Sums<T> sums;  // (V R) V^T
    product(a, b, 0, D, true, work_flipped, true, outer_flipped, sums);
    keep(sums);
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  const T diagonal = thread < D ? static_cast<T>(work[thread * kStride + thread]) : T(0);
  const T trace = in.rho != nullptr ? block_sum(diagonal, scratch) : T(0);
  for (int e = thread; e < D * D; e += kThreads) {
    const int i = e / D, j = e % D;
    const T core = work[(i > j ? i : j) * kStride + (i > j ? j : i)];
    in.inner[(g * D + i) * D + j] = shrunk(in, g, core, i == j, trace);
  }
}

// The four products of a larger group, as operands of matrix_product_kernel.
template <class T>
struct BackwardMatrixProduct {
  using Element = T;
  MatrixShape shape;
  BackwardMatrixArguments<T> in;
  const T* from;   // [G, D, D], the product before
  T* to;           // [G, D, D]
  const T* trace;  // [G]; null without rho

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
    const T trace = this->trace != nullptr ? this->trace[g] : T(0);
    const T value = shrunk(this->in, g, sum, i == j, trace);
    this->to[this->at(g, i, j)] = this->to[this->at(g, j, i)] = value;
  }
};

// trace [G] of (V R) V^T, from V R; and grad_gamma. One block per group.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_sums_kernel(BackwardMatrixArguments<T> in, const T* from, T* trace) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, D = in.width;
  for (int64_t j = 0; j < D; j += kTile) sum_grad_gamma(in, g, j);
  if (trace == nullptr) return;
  const T* const outer = in.outer() + g * D * D;
  T sum = 0;
  for (int64_t e = threadIdx.x; e < D * D; e += kThreads) sum += from[g * D * D + e] * outer[e];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) trace[g] = sum;
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
  if (args.D <= kTile) {
    device.launch(backward_matrix_kernel<T>, args.G, kThreads, kBackwardMatrixSharedBytes<T>, in);
    return;
  }
  const MatrixShape full{args.G, args.D, args.D, args.D, 1, false},
      lower{args.G, args.D, args.D, args.D, 1, true};
  auto first = device.template allocate<T>(args.G * args.D * args.D),
       second = device.template allocate<T>(args.G * args.D * args.D);
  auto trace = device.template allocate<T>(args.rho != nullptr ? args.G : 0);
  T *from = first.get(), *to = second.get();
  multiply_matrices<Device, T>(device, OuterTimesCross<T>{{full, in, nullptr, from, nullptr}});
  if (args.kind == 0) {
    multiply_matrices<Device, T>(device, TimesBasis<T>{{full, in, from, to, nullptr}});
    std::swap(from, to);
  }
  multiply_matrices<Device, T>(device, OuterTimesWeighed<T>{{full, in, from, to, nullptr}});
  T* const traces = args.rho != nullptr ? trace.get() : nullptr;
  device.launch(backward_sums_kernel<T>, args.G, kThreads,
                static_cast<int64_t>(kReduceWords * sizeof(T)), in, static_cast<const T*>(to),
                traces);
  multiply_matrices<Device, T>(
      device, TimesOuter<T>{{lower, in, to, args.inner, static_cast<const T*>(traces)}});
}

}  // namespace cuda
}  // namespace fastwhiten
