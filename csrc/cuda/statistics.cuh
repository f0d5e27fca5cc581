// mean [C] = sum_n p_n x_n ; covariance [G, D, D] = sum_n p_n (x_n - mean)(x_n - mean)^T.
//
// A slab t is 32 rows, of weight P_t and mean m_t; x - m_t is what is multiplied. A run of 31
// slabs, its own mean m, and what came before, of weight P and mean m', are put together (Chan,
// Golub, LeVeque 1983) by one slab more, whose rows are the differences of means:
//   Q += sum_t [sum_{n in t} p_n (x_n - m_t)(..)^T + P_t (m_t - m)(..)^T] + P P' / (P + P') (m -
//   m')(..)^T.
// Every product is of centred numbers, and means are kept as differences from an origin, row 0 or,
// with weights, the row of largest weight: |mean| >> std costs nothing. Bytes: x once from memory
// per 64 channels, a tile on the diagonal once; partial sums [chunks, G, D, D]. Determinism: rows
// are cut by shape alone; chunks are added by a second kernel, in an order that depends on their
// number only. Shared memory: four slabs, what is under way of x, 42 KiB (float, D <= 64). Lower
// tiles only, mirrored at the end; of one on the diagonal three quarters.
#pragma once

#include "heaviest.cuh"
#include "stages.h"
#include "statistics_chunk.cuh"

namespace fastwhiten {
namespace cuda {

// kOneTile: D <= 64.
template <bool kOneTile, class In, class T>
__global__ void __launch_bounds__(kThreads, 2) statistics_kernel(StatisticsArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const StatisticsShared<kOneTile, In, T> at(arena);
  const unsigned chunk = blockIdx.x / in.tiling.count;
  const ChannelTile tile = in.tiling.tile(in.s, blockIdx.x - chunk * in.tiling.count);
  start_chunk(in, tile, chunk, at);
  __syncthreads();
  if (in.s.planes()) {
    StatisticsChunk<true, kOneTile, In, T>(in, at, tile, chunk).sum();
  } else {
    StatisticsChunk<false, kOneTile, In, T>(in, at, tile, chunk).sum();
  }
}

template <class In, class T>
struct CombineArguments {
  Layout s;
  AddShares shares;  // of chunks
  unsigned across, down;
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

// Shared memory: weights of chunks, as they are and as shares.
template <class T>
struct CombineShared {
  static constexpr int64_t kWords = kReduceWords * sizeof(double);
  static constexpr int64_t kBytes = kWords + (2 * kMostChunks + 2 * kAddScratch) * sizeof(T);
  __device__ explicit CombineShared(char* arena)
      : words(arena, 0, kReduceWords),
        weights(arena, kWords, kMostChunks),
        shares(arena, kWords + kMostChunks * sizeof(T), kMostChunks),
        scratch(arena, kWords + 2 * kMostChunks * sizeof(T), 2 * kAddScratch) {}
  SharedArray<double> words;
  SharedArray<T> weights, shares, scratch;
};

template <class In, class T>
__global__ void __launch_bounds__(kAddThreads)
    statistics_combine_kernel(CombineArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const CombineShared<T> at(arena);
  const int thread = static_cast<int>(threadIdx.x), rows = in.shares.rows();
  const unsigned down = blockIdx.x / in.across, group = down / in.down;
  const int64_t D = in.s.width, C = in.s.groups * D, g = group;
  const int64_t first_row = int64_t{down - group * in.down} * rows;
  const int64_t first_column = int64_t{blockIdx.x - down * in.across} * 32;
  if (first_column >= first_row + rows) return;  // above the diagonal
  const int64_t i = first_row + in.shares.row(), j = first_column + thread % 32;
  const bool inside = i < D && j <= i;
  const double weight = thread < in.shares.chunks ? in.weights[thread] : 0;
  const double total =
      in.p == nullptr ? static_cast<double>(in.s.rows()) : block_sum(weight, at.words);
  if (thread < in.shares.chunks) {
    at.weights[thread] = static_cast<T>(weight);
    at.shares[thread] = total > 0 ? static_cast<T>(weight / total) : static_cast<T>(weight * 0);
  }
  __syncthreads();
  // Means over chunks, relative to the origin, as differences from the first chunk's: shares sum to
  // 1 but for rounding.
  const T* const mean_i = in.means + g * D + (i < D ? i : 0);
  const T* const mean_j = in.means + g * D + (j < D ? j : 0);
  const T base_i = *mean_i, base_j = *mean_j;
  T means[2] = {};
  const int channels = static_cast<int>(C), square = static_cast<int>(C * D);
  in.shares.each([&](int k) {
    const T share = at.shares[k];
    means[0] += share * (mean_i[k * channels] - base_i);
    means[1] += share * (mean_j[k * channels] - base_j);
  });
  in.shares.sums(means, at.scratch);
  means[0] += base_i;
  means[1] += base_j;
  if (j == 0 && in.shares.part() == 0 && i < D) {
    const T origin = convert<T>(in.x[(in.origin ? *in.origin : 0) + (g * D + i) * in.s.length]);
    in.mean[g * D + i] = origin + means[0];
  }
  T sums[1] = {};
  const T* const products = in.products + (inside ? (g * D + i) * D + j : 0);
  in.shares.each([&](int k) {
    const T of_i = mean_i[k * channels] - means[0], of_j = mean_j[k * channels] - means[1];
    sums[0] += products[k * square] + static_cast<T>(at.weights[k]) * of_i * of_j;
  });
  in.shares.sums(sums, at.scratch);
  T sum = sums[0];
  if (!inside || in.shares.part() > 0) return;
  if (in.p == nullptr) sum /= static_cast<T>(total);
  const int64_t lower = (g * D + i) * D + j, upper = (g * D + j) * D + i;
  in.covariance[lower] = in.covariance[upper] = sum;
  if (in.blended == nullptr) return;
  const T old = (in.running[lower] + in.running[upper]) / 2;
  in.blended[lower] = in.blended[upper] = in.batch_weight * sum + (1 - in.batch_weight) * old;
}

template <class Device, class In, class T>
void run_statistics(Device& device, const Statistics<In, T>& args) {
  const ChannelTiling tiling(args.s, true);
  const int64_t C = args.s.groups * args.s.width;
  const Chunks chunks = cut(args.s.rows(), tiling.count);
  auto products = device.template allocate<T>(chunks.count * C * args.s.width);
  auto means = device.template allocate<T>(chunks.count * C);
  auto weights = device.template allocate<double>(chunks.count);
  auto heaviest = device.template allocate<int64_t>(args.p != nullptr ? 1 : 0);
  const int64_t* const origin = run_heaviest_row(device, args.s, args.p, heaviest.get());
  const StatisticsArguments<In, T> arguments{
      args.s,       tiling,         SlabStep(args.s), moves_vectors(args.s, {args.x}),
      chunks.count, chunks.size,    args.x,           args.p,
      origin,       products.get(), means.get(),      weights.get()};
  if (args.s.width <= kTile) {
    device.launch(statistics_kernel<true, In, T>, tiling.count * chunks.count, kThreads,
                  StatisticsShared<true, In, T>::kBytes, arguments);
  } else {
    device.launch(statistics_kernel<false, In, T>, tiling.count * chunks.count, kThreads,
                  StatisticsShared<false, In, T>::kBytes, arguments);
  }
  const AddShares shares(chunks.count);
  const auto across = static_cast<unsigned>(ceil_div(args.s.width, 32));
  const auto down = static_cast<unsigned>(ceil_div(args.s.width, shares.rows()));
  device.launch(
      statistics_combine_kernel<In, T>, args.s.groups * down * across, kAddThreads,
      CombineShared<T>::kBytes,
      CombineArguments<In, T>{args.s, shares, across, down, args.x, args.p, origin, products.get(),
                              means.get(), weights.get(), args.mean, args.covariance, args.running,
                              static_cast<T>(args.batch_weight), args.blended});
}

}  // namespace cuda
}  // namespace fastwhiten
