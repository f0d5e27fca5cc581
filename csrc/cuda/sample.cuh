// The sample side, M <= D, rows only: mean [C], scaled_n = sqrt(p_n) (x_n - mean), gram = scaled
// scaled^T = V diag(d) V^T, t = sqrt((1 - rho) d + e), e = eps + rho sum(d) / D;
// P = diag(1/t) V^T scaled, y = diag(1/sqrt p) V P. Backward, diagonals and centring folded into M
// x M matrices: H = B^T grad + K P, dx = E H with B = diag(1/sqrt p) V diag(1/t), F = (B^T grad)
// P^T, K = -(1 - rho) [t_j (F_ij + F_ji) / (t_i + t_j)] - (rho/D) sum_i(F_ii / t_i) diag(t), E =
// diag(sqrt p) V - p u^T, u = V^T sqrt p. Products: matrices.cuh. Determinism: as there.
#pragma once

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
__global__ void __launch_bounds__(kThreads)
    add_symmetric_kernel(int64_t chunks, int64_t G, int64_t M, const T* products, T* out) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= G * M * M) return;
  const int64_t g = e / (M * M), i = e / M % M, j = e % M;
  if (j > i) return;
  T sum = 0;
  for (int64_t k = 0; k < chunks; ++k) sum += products[k * G * M * M + e];
  out[e] = out[(g * M + j) * M + i] = sum;
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

template <class Device, class In, class T>
void run_sample_statistics(Device& device, const Layout& s, const In* x, const T* p, T* mean,
                           T* scaled, T* gram) {
  const int64_t M = s.samples, C = s.channels, G = s.groups;
  auto heaviest = device.template allocate<int64_t>(p != nullptr ? 1 : 0);
  const int64_t* const origin = run_heaviest_row(device, s, p, heaviest.get());
  device.launch(sample_center_kernel<In, T>, ceil_div(C, kCenterColumns), kThreads,
                kCenterSharedBytes<T>,
                SampleCenterArguments<In, T>{M, C, x, p, origin, mean, scaled});
  MatrixShape shape{G, M, M, s.width, 1, true};
  shape.chunks = cut(s.width, matrix_blocks(shape)).count;
  auto products = device.template allocate<T>(shape.chunks * G * M * M);
  const GramProduct<T> op{shape, C, scaled, products.get()};
  device.launch(matrix_product_kernel<GramProduct<T>>, matrix_blocks(shape), kThreads,
                kMatrixSharedBytes<T>, op);
  device.launch(add_symmetric_kernel<T>, ceil_div(G * M * M, kThreads), kThreads, 0, shape.chunks,
                G, M, static_cast<const T*>(products.get()), gram);
}

}  // namespace cuda
}  // namespace fastwhiten
