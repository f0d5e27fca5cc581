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
// number only. Shared memory: four slabs, 34 KiB (float). Lower tiles only, mirrored at the end; of
// one on the diagonal three quarters.
#pragma once

#include "chunks.cuh"
#include "heaviest.cuh"
#include "panels.cuh"
#include "reduce.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct StatisticsArguments {
  Layout s;
  ChannelTiling tiling;
  SlabStep step;
  bool vectors;           // moves_vectors
  int64_t chunks;         // runs of consecutive rows: who is summed by one block
  int64_t chunk_rows;     // a multiple of kDepth
  const In* x;            // [M, C] or [N, C, L]
  const T* p;             // [M] or null for 1
  const int64_t* origin;  // offset of the row that means are relative to; null: row 0
  T* products;            // [chunks, G, D, D], lower triangle
  T* means;               // [chunks, C], relative to the origin
  double* weights;        // [chunks]
};

enum StatisticsPlace : int {
  kProducts,  // of the block, in the arrays of the launch
  kMeans,
  kFirstRow,
  kBeyond,    // from a's x to b's
  kChannels,  // of a; off the diagonal, b has 64
  kWeight,    // negative in all blocks of a chunk but one
  kPlaces,
};

// Shared memory of a block: x - m_t of both operands, one of them weighted; the m_t; together, at
// other times, what gather needs. Of the columns, a's and then b's: what means are relative
// to, the mean of the rows before a run, sums of the m_t by four parts. Of two slabs in turn:
// weights of rows. Of slabs: weights of a run's; weight and its inverse of two in turn. What is
// under way of x. Weights of the rows before a run, and of the run.
enum StatisticsSlab : int { kSlabA, kSlabB = kSlab, kMeansA = 2 * kSlab, kMeansB = 3 * kSlab };
template <bool kOneTile, class In, class T>
struct StatisticsShared {
  static_assert(kGatherElements<T> <= 4 * kSlab, "gather works in the slabs");
  static constexpr int kColumns = 2 * kTile, kNumbers = 4 * kSlab + 6 * kColumns + 3 * kDepth + 4;
  static constexpr int kWords = RowPanel<true, In>::kWords;  // of one operand
  static constexpr int64_t kFetched = kNumbers * sizeof(T);  // where words of x begin
  static constexpr int64_t kLarge = kFetched + (kOneTile ? 4 : 8) * kWords;  // and larger ones
  static constexpr int64_t kBytes = kLarge + (2 + kPlaces) * sizeof(int64_t);
  __device__ explicit StatisticsShared(char* arena)
      : slabs(arena, 0, 4 * kSlab),
        a(arena, kSlabA * sizeof(T), kSlab),
        b(arena, kSlabB * sizeof(T), kSlab),
        means_a(arena, kMeansA * sizeof(T), kSlab),
        means_b(arena, kMeansB * sizeof(T), kSlab),
        origin(arena, 4 * kSlab * sizeof(T), kColumns),
        mean(arena, (4 * kSlab + kColumns) * sizeof(T), kColumns),
        parts(arena, (4 * kSlab + 2 * kColumns) * sizeof(T), 4 * kColumns),
        p(arena, (4 * kSlab + 6 * kColumns) * sizeof(T), 2 * kDepth),
        weights(arena, (4 * kSlab + 6 * kColumns + 2 * kDepth) * sizeof(T), kDepth),
        slab(arena, (4 * kSlab + 6 * kColumns + 3 * kDepth) * sizeof(T), 4),
        next_a(arena, kFetched, kWords),
        next_b(arena, kFetched + (kOneTile ? 0 : 4 * kWords), kWords),
        weight(arena, kLarge, 2),
        places(arena, kLarge + 2 * sizeof(double), kPlaces) {}
  SharedArray<T> slabs, a, b, means_a, means_b, origin, mean, parts, p, weights, slab;
  SharedArray<uint32_t> next_a, next_b;
  SharedArray<double> weight;
  SharedArray<int64_t> places;
};

// The row of means that slab t of a run has: teams share those of any number of slabs.
template <class T>
__device__ __forceinline__ int mean_row(int t) {
  const auto n = static_cast<unsigned>(t);
  return static_cast<int>(n % kTeams<T> * kTeamDepth<T> + n / kTeams<T>);
}
template <class T>
__device__ __forceinline__ int slab_of(int row) {
  const auto n = static_cast<unsigned>(row);
  return static_cast<int>(n % kTeamDepth<T> * kTeams<T> + n / kTeamDepth<T>);
}
// Rows of means that each team multiplies, of `count`.
template <class T>
__device__ __forceinline__ int mean_depth(int count) {
  return (count + 4 * kTeams<T> - 1) / (4 * kTeams<T>)*4;
}

// v -= the mean of the slab, which becomes a row of means. Weights p of the slab's rows, if `plain`
// 1 all of them.
template <class Panel, class T>
__device__ __forceinline__ void center(const Panel& panel, bool plain, const SharedArray<T>& p,
                                       int slab, T inverse, const SharedArray<T>& means, int row,
                                       T (&v)[Panel::kElements]) {
  T mean[Panel::kChannels] = {};
  if (plain) {
#pragma unroll
    for (int e = 0; e < Panel::kElements; ++e) mean[Panel::channel_of(e)] += v[e];
  } else {
#pragma unroll
    for (int e = 0; e < Panel::kElements; ++e) {
      const T weight = p[slab + panel.spot.row() + Panel::row_step(Panel::row_of(e))];
      mean[Panel::channel_of(e)] += weight * v[e];
    }
  }
  Panel::add_lanes(mean);
#pragma unroll
  for (int n = 0; n < Panel::kChannels; ++n) {
    mean[n] *= inverse;
    if (panel.leads())
      means[slab_place(row, panel.spot.column() + Panel::column_step(n))] = mean[n];
  }
#pragma unroll
  for (int e = 0; e < Panel::kElements; ++e) v[e] -= mean[Panel::channel_of(e)];
}

// What is the same for all slabs. Barrier after.
template <class In, class T, class Shared>
__device__ __forceinline__ void start_chunk(const StatisticsArguments<In, T>& in,
                                            const ChannelTile& tile, unsigned chunk,
                                            const Shared& at) {
  const int thread = static_cast<int>(threadIdx.x), c = thread % kTile;
  const Layout s = in.s;
  const int64_t C = s.groups * s.width;
  if (thread == 0) {
    at.places[kProducts] = chunk * C * s.width + tile.place(s);
    at.places[kMeans] = chunk * C + tile.row;
    at.places[kFirstRow] = chunk * in.chunk_rows;
    at.places[kChannels] = tile.rows;
    at.places[kWeight] = tile.row + tile.column == 0 ? int64_t{chunk} : -1;
    at.places[kBeyond] = (tile.column - tile.row) * s.length;
  }
  if (thread >= 2 * kTile) return;
  const bool of_a = thread < kTile, inside = c < (of_a ? tile.rows : tile.columns);
  const In* const row = in.x + (in.origin != nullptr ? *in.origin : 0);
  const int64_t channel = (of_a ? tile.row : tile.column) + c;
  at.origin[thread] = inside ? convert<T>(row[channel * s.length]) : T(0);
}

// Means of slabs become their differences from the mean of the run, a's weighted; a row more is the
// difference from the rows before, which then include the run. Four threads share a column and
// have eight rows each. Barriers before, inside and after.
template <class T, class Shared>
__device__ __forceinline__ void merge_run(const Shared& at, int slabs, bool first, bool diagonal) {
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const int column = thread % kTile, part = thread / kTile, depth = mean_depth<T>(slabs + 1);
  T sum_a = 0, sum_b = 0;
#pragma unroll 1
  for (int row = 8 * part; row < 8 * part + 8 && slab_of<T>(row) < slabs; ++row) {
    const T own = at.weights[slab_of<T>(row)];
    const int place = slab_place(row, column);
    sum_a += own * at.means_a[place];
    if (!diagonal) sum_b += own * at.means_b[place];
  }
  at.parts[part * kTile + column] = sum_a;
  if (!diagonal) at.parts[4 * kTile + part * kTile + column] = sum_b;
  __syncthreads();
  const T weight = static_cast<T>(at.weight[1]), inverse = weight > 0 ? 1 / weight : T(0);
  const auto mean = [&](int operand) {
    const int from = 4 * operand * kTile + column;
    const T low = static_cast<T>(at.parts[from]) + static_cast<T>(at.parts[from + kTile]);
    return (low + (static_cast<T>(at.parts[from + 2 * kTile]) +
                   static_cast<T>(at.parts[from + 3 * kTile]))) *
           inverse;
  };
  const T mean_a = mean(0), mean_b = diagonal ? mean_a : mean(1);
#pragma unroll 1
  for (int row = 8 * part; row < 8 * part + 8 && row % kTeamDepth<T> < depth; ++row) {
    const int t = slab_of<T>(row), place = slab_place(row, column);
    T own = 0, a = 0, b = 0;
    if (t < slabs) {
      own = at.weights[t];
      a = at.means_a[place] - mean_a;
      b = diagonal ? a : at.means_b[place] - mean_b;
    } else if (t == slabs) {
      T old_a = 0, old_b = 0, share = 1;
      if (!first) {
        old_a = at.mean[column];
        old_b = at.mean[kTile + column];
        const double total = at.weight[0] + at.weight[1];
        share = static_cast<T>(total > 0 ? at.weight[1] / total : 0.0);
        own = static_cast<T>(at.weight[0]) * share;
      }
      a = mean_a - old_a;
      b = mean_b - old_b;
      at.mean[column] = old_a + share * a;
      at.mean[kTile + column] = old_b + share * b;
    }
    at.means_a[place] = own * a;
    at.means_b[place] = b;
  }
}

template <bool kPlanes, bool kOneTile, class In, class T>
__device__ __forceinline__ void sum_chunk(const StatisticsArguments<In, T>& in,
                                          const StatisticsShared<kOneTile, In, T>& at) {
  using Panel = RowPanel<kPlanes, In>;
  const Layout s = in.s;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned chunk = blockIdx.x / in.tiling.count;
  const ChannelTile tile = in.tiling.tile(s, blockIdx.x % in.tiling.count);
  const int64_t first = chunk * in.chunk_rows, last = s.rows() - first;
  const int rows = static_cast<int>(in.chunk_rows < last ? in.chunk_rows : last);
  const bool diagonal = kOneTile || tile.row == tile.column;
  const auto channels = [&] {  // of a; off the diagonal, b has 64
    return kOneTile ? tile.rows : static_cast<int>(static_cast<int64_t>(at.places[kChannels]));
  };
  Panel panel(in.x, s, first, tile.row);
  TeamSums<T> sums;
  const auto start_loads = [&](int r) {
    if (!in.vectors || r >= rows) return;
    panel.start_load(in.step, 0, rows - r, channels(), at.next_a);
    if (diagonal) return;
    panel.start_load(in.step, at.places[kBeyond], rows - r, kTile, at.next_b);
  };
  start_chunk(in, tile, chunk, at);
  __syncthreads();
  start_loads(0);
  // Weights of the rows of a slab, and of the slab itself: by the first warp.
  const auto row_weight = [&](int r) {
    if (thread >= kDepth || r + thread >= rows) return T(0);
    return in.p != nullptr ? in.p[at.places[kFirstRow] + r + thread] : T(1);
  };
  const auto store_weights = [&](int half, T weight) {
    if (thread >= kDepth) return;
    at.p[half * kDepth + thread] = weight;
    const T sum = warp_sum(weight);
    if (thread != 0) return;
    at.slab[2 * half] = sum;
    at.slab[2 * half + 1] = sum > 0 ? 1 / sum : T(0);  // 0 times what is not finite is NaN
  };
  store_weights(0, row_weight(0));
  if (thread == 0) at.weight[0] = 0;
  const auto stage_slab = [&](int r, int slab) {
    const int row = mean_row<T>(slab), half = r / kDepth % 2;
    const bool plain = in.p == nullptr && rows - r >= kDepth;
    const T next_weight = row_weight(r + kDepth);
    In x[Panel::kElements];
    T v[Panel::kElements];
    const auto finish = [&](const SharedArray<uint32_t>& words, int64_t beyond, int channels) {
      if (in.vectors) {
        panel.finish_load(words, x);
      } else {
        panel.load(in.step, beyond, rows - r, channels, x);
      }
    };
    finish(at.next_a, 0, channels());
    __syncthreads();  // the slabs before are read, and weights are there
    const T inverse = at.slab[2 * half + 1];
    panel.subtract(x, at.origin, 0, v);
    center(panel, plain, at.p, half * kDepth, inverse, at.means_a, row, v);
    if (diagonal && in.p != nullptr) panel.store(at.b, v);
    if (!plain) {
#pragma unroll
      for (int e = 0; e < Panel::kElements; ++e) {
        v[e] *= at.p[half * kDepth + panel.spot.row() + Panel::row_step(Panel::row_of(e))];
      }
    }
    panel.store(at.a, v);
    if (!diagonal) {
      finish(at.next_b, at.places[kBeyond], kTile);
      panel.subtract(x, at.origin, kTile, v);
      center(panel, plain, at.p, half * kDepth, inverse, at.means_b, row, v);
      panel.store(at.b, v);
    }
    if (thread == 0) {
      const T weight = at.slab[2 * half];
      at.weights[slab] = weight;
      at.weight[1] = (slab > 0 ? static_cast<double>(at.weight[1]) : 0) + weight;
    }
    store_weights(half ^ 1, next_weight);
    panel.advance(in.step);
    start_loads(r + kDepth);
  };
  for (int r = 0, slab = 0; r < rows; slab = 0) {  // once for each run
    while (true) {
      const bool means = r >= rows || slab == kRunSlabs;  // the last time around
      if (means) {
        merge_run<T>(at, slab, r == slab * kDepth, diagonal);
      } else {
        stage_slab(r, slab);
      }
      __syncthreads();
      const int first = thread / kTeamThreads<T> * kTeamDepth<T>;
      const int depth = means ? mean_depth<T>(slab + 1) : kTeamDepth<T>;
      const int left = means ? kMeansA : kSlabA;
      const int right = means ? kMeansB : diagonal && in.p == nullptr ? kSlabA : kSlabB;
      constexpr int kUnroll = kOneTile ? 4 : 2;
      if (diagonal) {
        multiply<true, kUnroll>(at.slabs, left, right, first, depth, sums);
      } else {
        multiply<false, kUnroll>(at.slabs, left, right, first, depth, sums);
      }
      if (means) break;
      r += kDepth;
      ++slab;
    }
    if (thread == 0) at.weight[0] += at.weight[1];
    gather(at.slabs, sums, [&](int, int i, int j, const Four<T>& four) {
      if (diagonal && j > i) return;
      store_products(s, channels(), diagonal ? channels() : kTile, i, j, four, r > slab * kDepth,
                     in.products + at.places[kProducts]);
    });
    sums.clear();
    __syncthreads();  // what gather worked in, and means, are read
  }
  if (diagonal && thread < channels()) in.means[at.places[kMeans] + thread] = at.mean[thread];
  if (thread == 0 && at.places[kWeight] >= 0) in.weights[at.places[kWeight]] = at.weight[0];
}

// kOneTile: D <= 64.
template <bool kOneTile, class In, class T>
__global__ void __launch_bounds__(kThreads, 2) statistics_kernel(StatisticsArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const StatisticsShared<kOneTile, In, T> at(arena);
  if (in.s.planes()) {
    sum_chunk<true, kOneTile>(in, at);
  } else {
    sum_chunk<false, kOneTile>(in, at);
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
  __syncthreads();  // the means are read
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
