// rho [G]: how much of the covariance is replaced by a multiple of the identity.
// With S' = beta S + (1 - beta) S_running, a = trace(S'), b = |S'|^2, n = 1 / (sum p^2 beta^2):
//   oas: ((1 - 2/D) b + a^2) / ((n + 1 - 2/D)(b - a^2/D))      (Chen et al. 2010, eq. 23)
//   ledoit-wolf: min(f / n, h) / h, h = b - a^2/D, f = sum_n p_n |xc_n|^4 - |S|^2   (2004,
//   sec. 3.2)
// clamped to [0, 1]; 1 where S' is a multiple of the identity already. Bytes: S' (and S) once; x
// once more for ledoit-wolf. Determinism: chunks of rows are added in order, blocks in a fixed
// tree.
#pragma once

#include "reduce.cuh"
#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

enum Intensity : int { kNone = 0, kFixed = 1, kOas = 2, kLedoitWolf = 3 };

template <class In, class T>
struct FourthMomentArguments {
  Layout s;
  int64_t chunks, chunk_rows;
  const In* x;    // [M, C] or [N, C, L]
  const T* mean;  // [C]
  const T* p;     // [M] or null for 1/M
  T* partial;     // [G, chunks]
};

template <class T>
constexpr int64_t kIntensitySharedBytes = kReduceWords * sizeof(T);

// One block per chunk and group. Rows: a warp shares a row's channels; planes: a thread has a row.
template <class In, class T>
__global__ void __launch_bounds__(kThreads) fourth_moment_kernel(FourthMomentArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const Layout s = in.s;
  const int64_t D = s.width, chunk = blockIdx.x % in.chunks, g = blockIdx.x / in.chunks;
  const int lanes = s.planes() ? 1 : 32, rows = kThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t first = chunk * in.chunk_rows;
  const int64_t last = first + in.chunk_rows < s.rows() ? first + in.chunk_rows : s.rows();
  const T uniform = T(1) / static_cast<T>(s.rows());
  T total = 0;
  for (int64_t base = first; base < last; base += rows) {  // all threads go round equally often
    const int64_t r = base + static_cast<int>(threadIdx.x) / lanes;
    T square = 0;
    for (int64_t c = lane; r < last && c < D; c += lanes) {
      const int64_t channel = g * D + c;
      const T xc = convert<T>(in.x[row_offset(s, r) + channel * s.length]) - in.mean[channel];
      square += xc * xc;
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      square += __shfl_xor_sync(0xffffffffu, square, distance);
    }
    if (lane == 0 && r < last) total += (in.p != nullptr ? in.p[r] : uniform) * square * square;
  }
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) in.partial[blockIdx.x] = total;
}

template <class T>
struct IntensityArguments {
  int64_t width, rows, chunks;
  int method;           // kFixed, kOas or kLedoitWolf
  T value;              // of kFixed
  const T* covariance;  // [G, D, D]
  const T* running;     // [G, D, D] or null
  T batch_weight;
  const T* p;       // [M] or null
  const T* fourth;  // [G, chunks]; null but for kLedoitWolf
  T* rho;           // [G]
};

// One block per group.
template <class T>
__global__ void __launch_bounds__(kThreads) intensity_kernel(IntensityArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kReduceWords);
  const int64_t g = blockIdx.x, D = in.width, base = g * D * D;
  if (in.method == kFixed) {
    if (threadIdx.x == 0) in.rho[g] = in.value;
    return;
  }
  const T share = in.running != nullptr ? in.batch_weight : T(1);
  T trace = 0, square = 0, own = 0, weights = 0;
  for (int64_t e = threadIdx.x; e < D * D; e += kThreads) {
    const T batch = in.covariance[base + e];
    const T old = in.running != nullptr ? (1 - share) * in.running[base + e] : T(0);
    const T blended = share * batch + old;
    if (e / D == e % D) trace += blended;
    square += blended * blended;
    own += batch * batch;
  }
  for (int64_t r = threadIdx.x; in.p != nullptr && r < in.rows; r += kThreads) {
    weights += in.p[r] * in.p[r];
  }
  trace = block_sum(trace, scratch);
  square = block_sum(square, scratch);
  own = block_sum(own, scratch);
  weights = block_sum(weights, scratch);
  if (threadIdx.x != 0) return;
  const T size = static_cast<T>(D);
  const T rows = (in.p != nullptr ? 1 / weights : static_cast<T>(in.rows)) / (share * share);
  const T distance = square - trace * trace / size;
  T numerator = (1 - 2 / size) * square + trace * trace;
  T denominator = (rows + 1 - 2 / size) * distance;
  if (in.method == kLedoitWolf) {
    T fourth = 0;
    for (int64_t k = 0; k < in.chunks; ++k) fourth += in.fourth[g * in.chunks + k];
    const T noise = (fourth - own) / rows;
    numerator = noise > distance ? distance : noise;  // NaN stays NaN
    denominator = distance;
  }
  const T ratio = denominator > 0 ? numerator / denominator : T(1);
  in.rho[g] = ratio < 0 ? T(0) : ratio > 1 ? T(1) : ratio;
}

template <class Device, class In, class T>
void run_intensity(Device& device, const Layout& s, const In* x, const T* mean, const T* covariance,
                   const T* running, const T* p, double batch_weight, int64_t method, double value,
                   T* rho) {
  const bool fourth = method == kLedoitWolf;
  const Chunks chunks = cut(s.rows(), s.groups);
  auto partial = device.template allocate<T>(fourth ? s.groups * chunks.count : 0);
  if (fourth) {
    device.launch(
        fourth_moment_kernel<In, T>, s.groups * chunks.count, kThreads, kIntensitySharedBytes<T>,
        FourthMomentArguments<In, T>{s, chunks.count, chunks.size, x, mean, p, partial.get()});
  }
  device.launch(intensity_kernel<T>, s.groups, kThreads, kIntensitySharedBytes<T>,
                IntensityArguments<T>{s.width, s.rows(), chunks.count, static_cast<int>(method),
                                      static_cast<T>(value), covariance, running,
                                      static_cast<T>(batch_weight), p,
                                      fourth ? partial.get() : nullptr, rho});
}

}  // namespace cuda
}  // namespace fastwhiten
