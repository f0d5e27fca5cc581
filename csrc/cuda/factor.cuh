// S' = beta S + (1 - beta) S_running = U diag(d) U^T, d from the eigensolver;
// l = (1 - rho) d + rho trace(S') / D + eps ; zca: W = U diag(1/sqrt l) U^T ; pca: W = U
// diag(1/sqrt l).
//
// Shrinkage and eps move eigenvalues only. The zca matrix is the product of U diag(l^-1/4) with its
// own transpose: lower tiles are computed and mirrored, so W is symmetric to the last bit.
// Bytes: U twice per 64 columns, W once. Determinism: every element is one sum, in order.
// Shared memory: two slabs, 17 KiB (float). NaN eigenvalues make a NaN matrix of their group alone.
#pragma once

#include "matrices.cuh"
#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

// out [G, D, D] = beta S + (1 - beta) S_running, symmetrised.
template <class T>
struct BlendArguments {
  int64_t groups, width;
  const T* batch;    // [G, D, D]
  const T* running;  // [G, D, D] or null
  T batch_weight;    // 1 without running
  T* out;            // [G, D, D]
};

template <class T>
__global__ void __launch_bounds__(kThreads) blend_kernel(BlendArguments<T> in) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, D = in.width;
  if (e >= in.groups * D * D) return;
  const int64_t g = e / (D * D), i = e / D % D, j = e % D, flipped = (g * D + j) * D + i;
  T value = in.batch_weight * ((in.batch[e] + in.batch[flipped]) / 2);
  if (in.running != nullptr) {
    value += (1 - in.batch_weight) * ((in.running[e] + in.running[flipped]) / 2);
  }
  in.out[e] = value;
}

template <class T>
struct SpectrumArguments {
  int64_t groups, width;
  const T* spectrum;  // [G, D]: d
  const T* rho;       // [G] or null
  T eps;
  T* eigenvalues;  // [G, D]: l; may be the spectrum itself
};

constexpr int kSpectrumThreads = 128;
template <class T>
constexpr int64_t kSpectrumSharedBytes = kReduceWords * sizeof(T);

// One block per group. A negative d is rounding: S' is positive semidefinite. NaN stays NaN.
template <class T>
__global__ void __launch_bounds__(kSpectrumThreads) spectrum_kernel(SpectrumArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, D = in.width;
  T keep = 1, shift = in.eps;
  if (in.rho != nullptr) {
    T sum = 0;
    for (int64_t i = threadIdx.x; i < D; i += kSpectrumThreads) sum += in.spectrum[g * D + i];
    keep = 1 - in.rho[g];
    shift = in.rho[g] * block_sum(sum, scratch) / static_cast<T>(D) + in.eps;
  }
  for (int64_t i = threadIdx.x; i < D; i += kSpectrumThreads) {
    const T d = in.spectrum[g * D + i];
    in.eigenvalues[g * D + i] = keep * (d < T(0) ? T(0) : d) + shift;
  }
}

template <class T>
struct ZcaMatrix {  // (U diag(l^-1/4)) (U diag(l^-1/4))^T, lower tiles
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = true;
  MatrixShape shape;
  const T* basis;        // [G, D, D]
  const T* eigenvalues;  // [G, D]
  T* matrix;             // [G, D, D]

  __device__ T a(int64_t g, int64_t k, int64_t i) const {
    const T root = sqrt(sqrt(eigenvalues[g * shape.depth + k]));
    return basis[(g * shape.depth + i) * shape.depth + k] / root;
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const { return a(g, k, j); }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    const int64_t D = shape.depth;
    matrix[(g * D + i) * D + j] = matrix[(g * D + j) * D + i] = sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    pca_matrix_kernel(int64_t count, int64_t D, const T* basis, const T* eigenvalues, T* matrix) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= count) return;
  matrix[e] = basis[e] / sqrt(eigenvalues[e / (D * D) * D + e % D]);
}

// The whitening matrix and the eigenvalues l from the eigensystem (d, U) of S'. zca, pca.
template <class Device, class T>
void run_matrix(Device& device, int64_t G, int64_t D, const T* spectrum, const T* basis,
                const T* rho, double eps, int64_t kind, T* eigenvalues, T* matrix) {
  device.launch(spectrum_kernel<T>, G, kSpectrumThreads, kSpectrumSharedBytes<T>,
                SpectrumArguments<T>{G, D, spectrum, rho, static_cast<T>(eps), eigenvalues});
  const T* const l = eigenvalues;
  if (kind == 0) {
    const ZcaMatrix<T> op{{G, D, D, D, 1, true}, basis, l, matrix};
    device.launch(matrix_product_kernel<ZcaMatrix<T>>, matrix_blocks(op.shape), kThreads,
                  kMatrixSharedBytes<T>, op);
  } else {
    device.launch(pca_matrix_kernel<T>, ceil_div(G * D * D, kThreads), kThreads, 0, G * D * D, D,
                  basis, l, matrix);
  }
}

template <class Device, class T>
void run_blend(Device& device, int64_t G, int64_t D, const T* batch, const T* running,
               double batch_weight, T* out) {
  const T share = running != nullptr ? static_cast<T>(batch_weight) : T(1);
  device.launch(blend_kernel<T>, ceil_div(G * D * D, kThreads), kThreads, 0,
                BlendArguments<T>{G, D, batch, running, share, out});
}

}  // namespace cuda
}  // namespace fastwhiten
