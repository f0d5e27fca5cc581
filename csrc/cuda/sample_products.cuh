// The products of the sample side as operands of matrix_product_kernel (formulas: sample.cuh).
// Diagonal factors and casts are applied where an operand is loaded or a result stored.
#pragma once

#include "backward_reduce.cuh"
#include "sample.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
struct SampleMatrices {
  int64_t M, C, D;
  const T* V;    // [G, M, M]
  const T* t;    // [G, M]
  const T* u;    // [G, M]; backward only
  const T* p;    // [M] or null for 1/M
  const T* rho;  // [G] or null; backward only

  __device__ __forceinline__ T root(int64_t n) const { return sqrt(row_weight(p, M, n)); }
  __device__ __forceinline__ T vector(int64_t g, int64_t n, int64_t i) const {
    return V[(g * M + n) * M + i];
  }
};

template <class T>
struct ProjectRows {  // P [G, M, D] = diag(1/t) V^T scaled
  using Element = T;
  static constexpr bool kADepthFirst = false, kBDepthFirst = false;
  MatrixShape shape;
  SampleMatrices<T> in;
  const T* scaled;  // [M, C]
  T* projected;     // [G, M, D]

  __device__ T a(int64_t g, int64_t k, int64_t i) const { return in.vector(g, k, i); }
  __device__ T b(int64_t g, int64_t k, int64_t j) const { return scaled[k * in.C + g * in.D + j]; }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    projected[(g * in.M + i) * in.D + j] = sum / in.t[g * in.M + i];
  }
};

template <class Out, class T>
struct ExpandRows {  // y [M, C] = diag(1/sqrt p) V P
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = false;
  MatrixShape shape;
  SampleMatrices<T> in;
  const T* projected;  // [G, M, D]
  Out* y;              // [M, C]

  __device__ T a(int64_t g, int64_t k, int64_t i) const { return in.vector(g, i, k); }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return projected[(g * in.M + k) * in.D + j];
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    y[i * in.C + g * in.D + j] = round_to<Out>(sum / in.root(i));
  }
};

template <class In, class T>
struct RotateGrad {  // H [G, M, D] = B^T grad
  using Element = T;
  static constexpr bool kADepthFirst = false, kBDepthFirst = false;
  MatrixShape shape;
  SampleMatrices<T> in;
  const In* grad;  // [M, C]
  T* H;            // [G, M, D]

  __device__ T a(int64_t g, int64_t k, int64_t i) const { return in.vector(g, k, i) / in.root(k); }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return convert<T>(grad[k * in.C + g * in.D + j]);
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    H[(g * in.M + i) * in.D + j] = sum / in.t[g * in.M + i];
  }
};

template <class T>
struct CrossProduct {  // chunks of F [G, M, M] = H P^T
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = true;
  MatrixShape shape;
  SampleMatrices<T> in;
  const T* H;          // [G, M, D]
  const T* projected;  // [G, M, D]
  T* products;         // [chunks, G, M, M]

  __device__ T a(int64_t g, int64_t k, int64_t i) const { return H[(g * in.M + i) * in.D + k]; }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return projected[(g * in.M + j) * in.D + k];
  }
  __device__ void store(int64_t chunk, int64_t g, int64_t i, int64_t j, T sum) const {
    products[((chunk * shape.batch + g) * in.M + i) * in.M + j] = sum;
  }
};

// coefficient [G] = (rho / D) sum_i F_ii / t_i. One block per group, only with rho.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sample_trace_kernel(SampleMatrices<T> in, const T* F, T* coefficient) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, M = in.M;
  T sum = 0;
  for (int64_t i = threadIdx.x; i < M; i += kThreads) {
    sum += F[(g * M + i) * M + i] / in.t[g * M + i];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) coefficient[g] = in.rho[g] * sum / static_cast<T>(in.D);
}

template <class T>
struct AddMixed {  // H += K P
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = false;
  MatrixShape shape;
  SampleMatrices<T> in;
  const T* F;            // [G, M, M]
  const T* coefficient;  // [G]; null without rho
  const T* projected;    // [G, M, D]
  T* H;                  // [G, M, D]

  __device__ T a(int64_t g, int64_t k, int64_t i) const {  // K_ik
    const int64_t M = in.M;
    const T ti = in.t[g * M + i], tk = in.t[g * M + k];
    const T mixed = tk * (F[(g * M + k) * M + i] + F[(g * M + i) * M + k]) / (ti + tk);
    if (in.rho == nullptr) return -mixed;
    const T kept = (in.rho[g] - 1) * mixed;
    return i == k ? kept - coefficient[g] * ti : kept;
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const {
    return projected[(g * in.M + k) * in.D + j];
  }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    H[(g * in.M + i) * in.D + j] += sum;
  }
};

template <class In, class T>
struct CenterGrad {  // dx [M, C] = E H
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = false;
  MatrixShape shape;
  SampleMatrices<T> in;
  const T* H;  // [G, M, D]
  In* dx;      // [M, C]

  __device__ T a(int64_t g, int64_t k, int64_t i) const {
    const T root = in.root(i);
    return root * (in.vector(g, i, k) - root * in.u[g * in.M + k]);
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const { return H[(g * in.M + k) * in.D + j]; }
  __device__ void store(int64_t, int64_t g, int64_t i, int64_t j, T sum) const {
    dx[i * in.C + g * in.D + j] = round_to<In>(sum);
  }
};

template <class T, class Device, class Op>
void multiply_samples(Device& device, const Op& op) {
  device.launch(matrix_product_kernel<Op>, matrix_blocks(op.shape), kThreads, kMatrixSharedBytes<T>,
                op);
}

template <class Device, class Out, class T>
void run_sample_apply(Device& device, const Layout& s, const T* scaled, const T* eigenvalues,
                      const T* eigenvectors, const T* p, const T* rho, double eps, Out* y,
                      T* projected) {
  const int64_t M = s.samples, D = s.width, G = s.groups;
  auto t = device.template allocate<T>(G * M);
  device.launch(sample_spectrum_kernel<T>, G, kThreads, kSampleSpectrumSharedBytes<T>,
                SampleSpectrumArguments<T>{M, D, eigenvalues, nullptr, p, rho, static_cast<T>(eps),
                                           t.get(), nullptr});
  const SampleMatrices<T> in{M, s.channels, D, eigenvectors, t.get(), nullptr, p, rho};
  const MatrixShape shape{G, M, D, M, 1, false};
  multiply_samples<T>(device, ProjectRows<T>{shape, in, scaled, projected});
  multiply_samples<T>(device, ExpandRows<Out, T>{shape, in, projected, y});
}

template <class Device, class In, class T>
void run_sample_backward(Device& device, const Layout& s, const In* grad, const T* projected,
                         const T* eigenvalues, const T* eigenvectors, const T* p, const T* rho,
                         double eps, In* dx) {
  const int64_t M = s.samples, D = s.width, G = s.groups;
  auto t = device.template allocate<T>(G * M), u = device.template allocate<T>(G * M);
  auto H = device.template allocate<T>(G * M * D), F = device.template allocate<T>(G * M * M);
  auto coefficient = device.template allocate<T>(rho != nullptr ? G : 0);
  device.launch(sample_spectrum_kernel<T>, G, kThreads, kSampleSpectrumSharedBytes<T>,
                SampleSpectrumArguments<T>{M, D, eigenvalues, eigenvectors, p, rho,
                                           static_cast<T>(eps), t.get(), u.get()});
  const SampleMatrices<T> in{M, s.channels, D, eigenvectors, t.get(), u.get(), p, rho};
  const MatrixShape shape{G, M, D, M, 1, false};
  multiply_samples<T>(device, RotateGrad<In, T>{shape, in, grad, H.get()});
  MatrixShape square{G, M, M, D, 1, false};
  square.chunks = cut(D, matrix_blocks(square)).count;
  const bool whole = square.chunks == 1;
  auto products = device.template allocate<T>(whole ? 0 : square.chunks * G * M * M);
  multiply_samples<T>(
      device, CrossProduct<T>{square, in, H.get(), projected, whole ? F.get() : products.get()});
  if (!whole) {
    add_chunks(device, AddChunksArguments<T>{square.chunks, G * M * M, products.get(), F.get(), 0,
                                             nullptr, nullptr});
  }
  T* const shares = rho != nullptr ? coefficient.get() : nullptr;
  if (shares != nullptr) {
    device.launch(sample_trace_kernel<T>, G, kThreads,
                  static_cast<int64_t>(kReduceWords * sizeof(T)), in,
                  static_cast<const T*>(F.get()), shares);
  }
  multiply_samples<T>(device, AddMixed<T>{shape, in, F.get(), shares, projected, H.get()});
  multiply_samples<T>(device, CenterGrad<In, T>{shape, in, H.get(), dx});
}

}  // namespace cuda
}  // namespace fastwhiten
