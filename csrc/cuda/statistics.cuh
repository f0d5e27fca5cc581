// mean [C] = sum_n p_n x_n ; covariance [G, D, D] = sum_n p_n (x_n - mean)(x_n - mean)^T.
//
// Slabs t of 32 rows, weight P_t, mean m_t, are merged as they come (Chan, Golub, LeVeque 1983):
//   Q += sum_{n in t} p_n (x_n - m_t)(..)^T + P P_t / (P + P_t) (m_t - m)(m_t - m)^T.
// Every product is of centred numbers, and means are kept as differences from an origin, row 0 or,
// with weights, the row of largest weight: |mean| >> std costs nothing. Bytes: x once from memory
// per 64 channels, partial sums [chunks, G, D, D]. Determinism: rows are cut by shape alone; chunks
// are added in order by a second kernel. Shared memory: two slabs and 3 vectors, 19 KiB (float).
// Lower tiles only, mirrored at the end.
#pragma once

#include "heaviest.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct StatisticsArguments {
  Layout s;
  int64_t chunks;         // runs of consecutive rows: who is summed by one block
  int64_t chunk_rows;     // a multiple of kDepth
  const In* x;            // [M, C] or [N, C, L]
  const T* p;             // [M] or null for 1
  const int64_t* origin;  // offset of the row that means are relative to; null: row 0
  T* products;            // [chunks, G, D, D], lower triangle
  T* means;               // [chunks, C], relative to the origin
  double* weights;        // [chunks]
};

template <class T>
constexpr int64_t kStatisticsSharedBytes = (2 * kSlab + 4 * kTile + kDepth) * sizeof(T);

// Merges the slab's mean into the running one of column `threadIdx.x` (a's, then b's): writes what
// the slab is centred with, and the difference of the two means.
template <class T>
__device__ __forceinline__ void merge_means(const SharedArray<T>& slab, const SharedArray<T>& p,
                                            const SharedArray<T>& center,
                                            const SharedArray<T>& difference, double slab_weight,
                                            T share, T& mean) {
  const int column = static_cast<int>(threadIdx.x) % kTile;
  T sum = 0;
#pragma unroll 8
  for (int k = 0; k < kDepth; ++k) sum += p[k] * slab[k * kStride + column];
  const T own = slab_weight > 0 ? static_cast<T>(sum / slab_weight) : sum * T(0);
  center[static_cast<int>(threadIdx.x)] = own;
  difference[static_cast<int>(threadIdx.x)] = own - mean;
  mean += share * (own - mean);
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) statistics_kernel(StatisticsArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> a(arena, 0, kSlab), b(arena, kSlab * sizeof(T), kSlab);
  const SharedArray<T> center(arena, 2 * kSlab * sizeof(T), 2 * kTile);
  const SharedArray<T> difference(arena, (2 * kSlab + 2 * kTile) * sizeof(T), 2 * kTile);
  const SharedArray<T> p(arena, (2 * kSlab + 4 * kTile) * sizeof(T), kDepth);
  const Layout s = in.s;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t tiles = channel_tiles(s, true), chunk = blockIdx.x / tiles;
  const ChannelTile tile = channel_tile(s, blockIdx.x % tiles, true);
  const int64_t first = chunk * in.chunk_rows;
  const int64_t last = first + in.chunk_rows < s.rows() ? first + in.chunk_rows : s.rows();
  const int64_t step = s.length;  // from a channel to the next
  const In* const origin = in.x + (in.origin != nullptr ? *in.origin : 0);
  const auto shifted = [&](int64_t r, int64_t channel) {
    return convert<T>(in.x[row_offset(s, r) + channel * step]) - convert<T>(origin[channel * step]);
  };
  Sums<T> sums;
  T mean = 0;         // of column `thread` of both slabs, for thread < 2 * kTile
  double weight = 0;  // of the rows so far
  for (int64_t r = first; r < last; r += kDepth) {
    const auto of_a = [&](int64_t k, int i) {
      return i < tile.rows ? shifted(k, tile.row + i) : T(0);
    };
    const auto of_b = [&](int64_t k, int j) {
      return j < tile.columns ? shifted(k, tile.column + j) : T(0);
    };
    __syncthreads();  // the slabs of the round before are read
    stage(a, r, last, s.planes(), of_a);
    stage(b, r, last, s.planes(), of_b);
    if (thread < kDepth) p[thread] = r + thread >= last ? T(0) : in.p ? in.p[r + thread] : T(1);
    __syncthreads();
    double slab_weight = 0;
    for (int k = 0; k < kDepth; ++k) slab_weight += p[k];
    const double total = weight + slab_weight;
    const double share = total > 0 ? slab_weight / total : 0;
    if (thread < 2 * kTile) {
      merge_means(thread < kTile ? a : b, p, center, difference, slab_weight, static_cast<T>(share),
                  mean);
    }
    __syncthreads();
    for (int e = thread; e < kDepth * kTile; e += kThreads) {
      const int k = e / kTile, i = e % kTile, at = k * kStride + i;
      if (r + k >= last) continue;  // rows that do not exist stay 0
      a[at] = p[k] * (a[at] - center[i]);
      b[at] = b[at] - center[kTile + i];
    }
    const T between = static_cast<T>(weight * share);
    sums.each(
        [&](int i, int j, T& sum) { sum += between * difference[i] * difference[kTile + j]; });
    weight = total;
    __syncthreads();
    multiply(a, b, sums);
  }
  const int64_t D = s.width;
  sums.each([&](int i, int j, T sum) {
    const int64_t row = tile.row + i, column = tile.column + j;
    if (i >= tile.rows || j >= tile.columns || column > row || row / D != column / D) return;
    in.products[(chunk * s.groups * D + row) * D + column % D] = sum;
  });
  if (thread < tile.rows && tile.row == tile.column) {
    in.means[chunk * s.groups * D + tile.row + thread] = mean;
  }
  if (blockIdx.x % tiles == 0 && thread == 0) in.weights[chunk] = weight;
}

template <class In, class T>
struct CombineArguments {
  Layout s;
  int64_t chunks;
  const In* x;
  const T* p;             // [M] or null: the sum of weights is M then, and is divided by
  const int64_t* origin;  // as above
  const T* products;      // [chunks, G, D, D]
  const T* means;         // [chunks, C]
  const double* weights;  // [chunks]
  T* mean;                // [C]
  T* covariance;          // [G, D, D]
  const T* running;       // [G, D, D] or null
  T batch_weight;
  T* blended;  // [G, D, D] or null: batch_weight covariance + (1 - ..) running, symmetric
};

constexpr int kPatch = 16;  // a block combines 16 x 16 elements
template <class T>
constexpr int64_t kCombineSharedBytes = 2 * kPatch * sizeof(T);

__host__ __device__ inline int64_t patches(const Layout& s) {
  const int64_t n = ceil_div(s.width, kPatch);
  return n * (n + 1) / 2;
}

// Mean over chunks of one channel, relative to the origin.
template <class In, class T>
__device__ __forceinline__ T combined_mean(const CombineArguments<In, T>& in, int64_t channel,
                                           double total) {
  const int64_t C = in.s.groups * in.s.width;
  const T base = in.means[channel];
  T sum = 0;
  for (int64_t k = 0; k < in.chunks; ++k) {
    const T share = total > 0 ? static_cast<T>(in.weights[k] / total) : T(0);
    sum += share * (in.means[k * C + channel] - base);
  }
  return base + sum;
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) statistics_combine_kernel(CombineArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> center(arena, 0, 2 * kPatch);
  const int64_t D = in.s.width, C = in.s.groups * D, g = blockIdx.x / patches(in.s);
  const int thread = static_cast<int>(threadIdx.x);
  int64_t a = 0, b = 0;
  triangle_position(blockIdx.x % patches(in.s), &a, &b);
  double total = 0;
  for (int64_t k = 0; k < in.chunks; ++k) total += in.weights[k];
  if (thread < 2 * kPatch) {
    const int64_t c = (thread < kPatch ? a : b) * kPatch + thread % kPatch, channel = g * D + c;
    center[thread] = c < D ? combined_mean(in, channel, total) : T(0);
  }
  __syncthreads();
  if (a == b && thread < kPatch && a * kPatch + thread < D) {
    const int64_t channel = g * D + a * kPatch + thread;
    const T origin = convert<T>(in.x[(in.origin ? *in.origin : 0) + channel * in.s.length]);
    in.mean[channel] = origin + center[thread];
  }
  const int64_t i = a * kPatch + thread / kPatch, j = b * kPatch + thread % kPatch;
  if (i >= D || j > i) return;
  const T at_i = center[thread / kPatch], at_j = center[kPatch + thread % kPatch];
  T sum = 0;
  for (int64_t k = 0; k < in.chunks; ++k) {
    const T di = in.means[k * C + g * D + i] - at_i, dj = in.means[k * C + g * D + j] - at_j;
    sum += in.products[(k * C + g * D + i) * D + j] + static_cast<T>(in.weights[k]) * di * dj;
  }
  if (in.p == nullptr) sum /= static_cast<T>(total);
  const int64_t lower = (g * D + i) * D + j, upper = (g * D + j) * D + i;
  in.covariance[lower] = in.covariance[upper] = sum;
  if (in.blended == nullptr) return;
  const T old = (in.running[lower] + in.running[upper]) / 2;
  in.blended[lower] = in.blended[upper] = in.batch_weight * sum + (1 - in.batch_weight) * old;
}

template <class Device, class In, class T>
void run_statistics(Device& device, const Statistics<In, T>& args) {
  const int64_t tiles = channel_tiles(args.s, true), C = args.s.groups * args.s.width;
  const Chunks chunks = cut(args.s.rows(), tiles);
  auto products = device.template allocate<T>(chunks.count * C * args.s.width);
  auto means = device.template allocate<T>(chunks.count * C);
  auto weights = device.template allocate<double>(chunks.count);
  auto heaviest = device.template allocate<int64_t>(args.p != nullptr ? 1 : 0);
  const int64_t* const origin = run_heaviest_row(device, args.s, args.p, heaviest.get());
  device.launch(statistics_kernel<In, T>, tiles * chunks.count, kThreads, kStatisticsSharedBytes<T>,
                StatisticsArguments<In, T>{args.s, chunks.count, chunks.size, args.x, args.p,
                                           origin, products.get(), means.get(), weights.get()});
  device.launch(
      statistics_combine_kernel<In, T>, args.s.groups * patches(args.s), kThreads,
      kCombineSharedBytes<T>,
      CombineArguments<In, T>{args.s, chunks.count, args.x, args.p, origin, products.get(),
                              means.get(), weights.get(), args.mean, args.covariance, args.running,
                              static_cast<T>(args.batch_weight), args.blended});
}

}  // namespace cuda
}  // namespace fastwhiten
