// The sample side, M <= D, rows only: mean [C], scaled_n = sqrt(p_n) (x_n - mean), gram = scaled
// scaled^T = V diag(d) V^T, t = sqrt((1 - rho) d + e), e = eps + rho sum(d) / D;
// P = diag(1/t) V^T scaled, y = diag(1/sqrt p) V P. Backward, diagonals and centring folded into M
// x M matrices: H = B^T grad + K P, dx = E H with B = diag(1/sqrt p) V diag(1/t), F = (B^T grad)
// P^T, K = -(1 - rho) [t_j (F_ij + F_ji) / (t_i + t_j)] - (rho/D) sum_i(F_ii / t_i) diag(t), E =
// diag(sqrt p) V - p u^T, u = V^T sqrt p. Products: matrices.cuh. Determinism: as there.
#pragma once

#include "backward_reduce.cuh"
#include "chunks.cuh"
#include "heaviest.cuh"
#include "matrices.cuh"
#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
__device__ __forceinline__ T row_weight(const T* p, int64_t M, int64_t n) {
  return p != nullptr ? p[n] : T(1) / static_cast<T>(M);
}

template <class In, class T>
struct SampleCenterArguments {
  int64_t M, C;
  const In* x;            // [M, C]
  const T* p;             // [M] or null for 1/M
  const int64_t* origin;  // offset of the row that sums are relative to; null: row 0
  T* mean;                // [C]
  T* scaled;              // [M, C]
};

constexpr int kCenterColumns = 32, kCenterRows = kThreads / kCenterColumns;
template <class T>
constexpr int64_t kCenterSharedBytes = kThreads * sizeof(T);

// One block per 32 channels: 8 threads share a channel's rows. Sums are of differences from
// row 0 or, with weights, the heaviest row, so that they are as accurate as the spread of the data
// allows. x twice, the second time from L2.
template <class In, class T>
__global__ void __launch_bounds__(kThreads) sample_center_kernel(SampleCenterArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> parts(arena, 0, kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread % kCenterColumns, segment = thread / kCenterColumns;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kCenterColumns + column;
  const bool inside = c < in.C;
  const int64_t origin = in.origin != nullptr ? *in.origin : 0;
  const T first = inside ? convert<T>(in.x[origin + c]) : T(0);
  T sum = 0;
#pragma unroll 4
  for (int64_t n = segment; inside && n < in.M; n += kCenterRows) {
    sum += row_weight(in.p, in.M, n) * (convert<T>(in.x[n * in.C + c]) - first);
  }
  parts[thread] = sum;
  __syncthreads();
  T shift = 0;
  for (int k = 0; k < kCenterRows; ++k) shift += parts[k * kCenterColumns + column];
  if (!inside) return;
  if (segment == 0) in.mean[c] = first + shift;
#pragma unroll 1  // square roots in double, several at a time, do not fit into registers
  for (int64_t n = segment; n < in.M; n += kCenterRows) {
    const T difference = convert<T>(in.x[n * in.C + c]) - first - shift;
    in.scaled[n * in.C + c] = sqrt(row_weight(in.p, in.M, n)) * difference;
  }
}

template <class T>
struct GramProduct {  // chunks of gram [G, M, M], lower triangle
  using Element = T;
  static constexpr bool kADepthFirst = true, kBDepthFirst = true;
  MatrixShape shape;  // [G] of M x M, depth D
  int64_t C;
  const T* scaled;  // [M, C]
  T* products;      // [chunks, G, M, M]

  __device__ T a(int64_t g, int64_t k, int64_t i) const {
    return scaled[i * C + g * shape.depth + k];
  }
  __device__ T b(int64_t g, int64_t k, int64_t j) const { return a(g, k, j); }
  __device__ void store(int64_t chunk, int64_t g, int64_t i, int64_t j, T sum) const {
    products[((chunk * shape.batch + g) * shape.rows + i) * shape.rows + j] = sum;
  }
};

// out [G, M, M] = the sum over chunks of the lower triangles, mirrored.
template <class T>
__global__ void __launch_bounds__(kAddThreads)
    add_symmetric_kernel(AddShares shares, int64_t G, int64_t M, const T* products, T* out) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kAddScratch);
  const int64_t e = shares.element(), g = e / (M * M), i = e / M % M, j = e % M;
  const bool wanted = g < G && j <= i;
  const int count = static_cast<int>(G * M * M);
  T sum[1] = {};
  if (wanted) shares.each([&](int k) { sum[0] += products[e + k * count]; });
  shares.sums(sum, scratch);
  if (wanted && shares.part() == 0) out[e] = out[(g * M + j) * M + i] = sum[0];
}

template <class T>
struct SampleSpectrumArguments {
  int64_t M, D;
  const T* eigenvalues;   // [G, M]: d
  const T* eigenvectors;  // [G, M, M]; null where u is not wanted
  const T* p;             // [M] or null for 1/M
  const T* rho;           // [G] or null
  T eps;
  T* t;  // [G, M]
  T* u;  // [G, M] or null
};

template <class T>
constexpr int64_t kSampleSpectrumSharedBytes = kReduceWords * sizeof(T);

// One block per group.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_spectrum_kernel(SampleSpectrumArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, M = in.M;
  const T rho = in.rho != nullptr ? in.rho[g] : T(0);
  const auto clamped = [&](int64_t i) {  // a Gram matrix has none below zero; NaN stays NaN
    const T d = in.eigenvalues[g * M + i];
    return d < T(0) ? T(0) : d;
  };
  T sum = 0;
  for (int64_t i = threadIdx.x; i < M; i += kThreads) sum += clamped(i);
  sum = block_sum(sum, scratch);
  const T e = in.rho != nullptr ? in.eps + rho * sum / static_cast<T>(in.D) : in.eps;
  for (int64_t i = threadIdx.x; i < M; i += kThreads) {
    in.t[g * M + i] = sqrt((1 - rho) * clamped(i) + e);
    if (in.u == nullptr) continue;
    T dot = 0;
    for (int64_t n = 0; n < M; ++n) {
      dot += sqrt(row_weight(in.p, M, n)) * in.eigenvectors[(g * M + n) * M + i];
    }
    in.u[g * M + i] = dot;
  }
}

// What follows are the operands of matrix_product_kernel. Diagonal factors and casts are applied
// where an operand is loaded or a result stored.

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

template <class Device, class In, class T>
void run_sample_statistics(Device& device, const SampleStatistics<In, T>& args) {
  const int64_t M = args.s.samples, C = args.s.channels, G = args.s.groups;
  auto heaviest = device.template allocate<int64_t>(args.p != nullptr ? 1 : 0);
  const int64_t* const origin = run_heaviest_row(device, args.s, args.p, heaviest.get());
  device.launch(sample_center_kernel<In, T>, ceil_div(C, kCenterColumns), kThreads,
                kCenterSharedBytes<T>,
                SampleCenterArguments<In, T>{M, C, args.x, args.p, origin, args.mean, args.scaled});
  MatrixShape shape{G, M, M, args.s.width, 1, true};
  shape.chunks = cut(args.s.width, matrix_blocks(shape)).count;
  auto products = device.template allocate<T>(shape.chunks * G * M * M);
  const GramProduct<T> op{shape, C, args.scaled, products.get()};
  device.launch(matrix_product_kernel<GramProduct<T>>, matrix_blocks(shape), kThreads,
                kMatrixSharedBytes<T>, op);
  const AddShares shares(shape.chunks);
  device.launch(add_symmetric_kernel<T>, ceil_div(G * M * M, 32 * shares.rows()), kAddThreads,
                static_cast<int64_t>(kAddScratch * sizeof(T)), shares, G, M,
                static_cast<const T*>(products.get()), args.gram);
}

template <class T, class Device, class Op>
void multiply_samples(Device& device, const Op& op) {
  device.launch(matrix_product_kernel<Op>, matrix_blocks(op.shape), kThreads, kMatrixSharedBytes<T>,
                op);
}

template <class Device, class Out, class T>
void run_sample_apply(Device& device, const SampleApply<Out, T>& args) {
  const int64_t M = args.s.samples, D = args.s.width, G = args.s.groups;
  auto t = device.template allocate<T>(G * M);
  device.launch(sample_spectrum_kernel<T>, G, kThreads, kSampleSpectrumSharedBytes<T>,
                SampleSpectrumArguments<T>{M, D, args.eigenvalues, nullptr, args.p, args.rho,
                                           static_cast<T>(args.eps), t.get(), nullptr});
  const SampleMatrices<T> in{M,       args.s.channels, D,      args.eigenvectors,
                             t.get(), nullptr,         args.p, args.rho};
  const MatrixShape shape{G, M, D, M, 1, false};
  multiply_samples<T>(device, ProjectRows<T>{shape, in, args.scaled, args.projected});
  multiply_samples<T>(device, ExpandRows<Out, T>{shape, in, args.projected, args.y});
}

template <class Device, class In, class T>
void run_sample_backward(Device& device, const SampleBackward<In, T>& args) {
  const int64_t M = args.s.samples, D = args.s.width, G = args.s.groups;
  auto t = device.template allocate<T>(G * M), u = device.template allocate<T>(G * M);
  auto H = device.template allocate<T>(G * M * D), F = device.template allocate<T>(G * M * M);
  auto coefficient = device.template allocate<T>(args.rho != nullptr ? G : 0);
  device.launch(sample_spectrum_kernel<T>, G, kThreads, kSampleSpectrumSharedBytes<T>,
                SampleSpectrumArguments<T>{M, D, args.eigenvalues, args.eigenvectors, args.p,
                                           args.rho, static_cast<T>(args.eps), t.get(), u.get()});
  const SampleMatrices<T> in{M,       args.s.channels, D,      args.eigenvectors,
                             t.get(), u.get(),         args.p, args.rho};
  const MatrixShape shape{G, M, D, M, 1, false};
  multiply_samples<T>(device, RotateGrad<In, T>{shape, in, args.grad, H.get()});
  MatrixShape square{G, M, M, D, 1, false};
  square.chunks = cut(D, matrix_blocks(square)).count;
  const bool whole = square.chunks == 1;
  auto products = device.template allocate<T>(whole ? 0 : square.chunks * G * M * M);
  multiply_samples<T>(device, CrossProduct<T>{square, in, H.get(), args.projected,
                                              whole ? F.get() : products.get()});
  if (!whole) {
    add_chunks<Device, T>(device, square.chunks, G * M * M, products.get(), F.get());
  }
  T* const shares = args.rho != nullptr ? coefficient.get() : nullptr;
  if (shares != nullptr) {
    device.launch(sample_trace_kernel<T>, G, kThreads,
                  static_cast<int64_t>(kReduceWords * sizeof(T)), in,
                  static_cast<const T*>(F.get()), shares);
  }
  multiply_samples<T>(device, AddMixed<T>{shape, in, F.get(), shares, args.projected, H.get()});
  multiply_samples<T>(device, CenterGrad<In, T>{shape, in, H.get(), args.dx});
}

}  // namespace cuda
}  // namespace fastwhiten
