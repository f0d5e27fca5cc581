// rho [G]: how much of the covariance is replaced by a multiple of the identity.
// With S' = beta S + (1 - beta) S_running, a = trace(S'), b = |S'|^2, n = 1 / (sum p^2 beta^2):
//   oas: ((1 - 2/D) b + a^2) / ((n + 1 - 2/D)(b - a^2/D))      (Chen et al. 2010, eq. 23)
//   ledoit-wolf: min(f / n, h) / h, h = b - a^2/D, f = sum_n p_n |xc_n|^4 - |S|^2   (2004,
//   sec. 3.2)
// clamped to [0, 1]; 1 where S' is a multiple of the identity already. Bytes: S' (and S) once; x
// once more for ledoit-wolf. Determinism: chunks of rows are added in order, blocks in a fixed
// tree.
#pragma once

#include "chunks.cuh"
#include "moments.cuh"
#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

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
constexpr int64_t kFourthSharedBytes = kReduceWords * sizeof(T);

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
    const In* const row = in.x + (r < last ? row_offset(s, r) + g * D * s.length : 0);
#pragma unroll 4
    for (int64_t c = lane; r < last && c < D; c += lanes) {
      const T xc = convert<T>(row[c * s.length]) - in.mean[g * D + c];
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
constexpr int64_t kIntensitySharedBytes = kMoments * kReduceWords * sizeof(T);

// One block per group. fourth [G, chunks]: of fourth_moment_kernel, null but for kLedoitWolf.
template <class T>
__global__ void __launch_bounds__(kThreads)
    intensity_kernel(IntensityArguments<T> in, int64_t chunks, const T* fourth) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kMoments * kReduceWords);
  const int64_t g = blockIdx.x;
  T rho = in.value;
  if (in.method != kFixed) {
    T sums[kMoments] = {};
    add_moments(in, g, sums);
    for (int64_t k = threadIdx.x; fourth != nullptr && k < chunks; k += kThreads) {
      sums[kFourth] += fourth[g * chunks + k];
    }
    block_sums(sums, scratch);
    rho = intensity_of(in, sums);
  }
  if (threadIdx.x == 0) in.rho[g] = rho;
}

template <class Device, class In, class T>
void run_intensity(Device& device, const Intensity<In, T>& args) {
  const bool fourth = args.method == kLedoitWolf;
  const Chunks chunks = cut(args.s.rows(), args.s.groups);
  auto partial = device.template allocate<T>(fourth ? args.s.groups * chunks.count : 0);
  if (fourth) {
    device.launch(fourth_moment_kernel<In, T>, args.s.groups * chunks.count, kThreads,
                  kFourthSharedBytes<T>,
                  FourthMomentArguments<In, T>{args.s, chunks.count, chunks.size, args.x, args.mean,
                                               args.p, partial.get()});
  }
  device.launch(intensity_kernel<T>, args.s.groups, kThreads, kIntensitySharedBytes<T>,
                IntensityArguments<T>{args.s.width, args.s.rows(), static_cast<int>(args.method),
                                      static_cast<T>(args.value), args.covariance, args.running,
                                      static_cast<T>(args.batch_weight), args.p, args.rho},
                chunks.count, static_cast<const T*>(fourth ? partial.get() : nullptr));
}

}  // namespace cuda
}  // namespace fastwhiten
