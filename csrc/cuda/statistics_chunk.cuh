// A chunk of rows of the statistics, by one block: statistics.cuh has the mathematics.
#pragma once

#include "chunks.cuh"
#include "panels.cuh"
#include "reduce.cuh"

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
// to, the mean of the rows before a run. Of two slabs in turn: weights of rows. Of slabs: weights
// of a run's; weight and its inverse of two in turn. What is under way of x. Weights of the rows
// before a run, and of the run.
enum StatisticsSlab : int { kSlabA, kSlabB = kSlab, kMeansA = 2 * kSlab, kMeansB = 3 * kSlab };
template <bool kOneTile, class In, class T>
struct StatisticsShared {
  static_assert(kGatherElements<T> <= 4 * kSlab, "gather works in the slabs");
  static constexpr int kColumns = 2 * kTile, kNumbers = 4 * kSlab + 2 * kColumns + 3 * kDepth + 4;
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
        p(arena, (4 * kSlab + 2 * kColumns) * sizeof(T), 2 * kDepth),
        weights(arena, (4 * kSlab + 2 * kColumns + 2 * kDepth) * sizeof(T), kDepth),
        slab(arena, (4 * kSlab + 2 * kColumns + 3 * kDepth) * sizeof(T), 4),
        next_a(arena, kFetched, kWords),
        next_b(arena, kFetched + (kOneTile ? 0 : 4 * kWords), kWords),
        weight(arena, kLarge, 2),
        places(arena, kLarge + 2 * sizeof(double), kPlaces) {}
  SharedArray<T> slabs, a, b, means_a, means_b, origin, mean, p, weights, slab;
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
// difference from the rows before, which then include the run. Four neighbours share a column and
// have eight rows each. Barriers before and after.
template <class T, class Shared>
__device__ __forceinline__ void merge_run(const Shared& at, int slabs, bool first, bool diagonal) {
  const int thread = opaque(static_cast<int>(threadIdx.x));
  const int column = thread / 4, part = thread % 4, depth = mean_depth<T>(slabs + 1);
  T mean_a = 0, mean_b = 0;
#pragma unroll 1
  for (int row = 8 * part; row < 8 * part + 8 && slab_of<T>(row) < slabs; ++row) {
    const T own = at.weights[slab_of<T>(row)];
    const int place = slab_place(row, column);
    mean_a += own * at.means_a[place];
    if (!diagonal) mean_b += own * at.means_b[place];
  }
  const T weight = static_cast<T>(at.weight[1]), inverse = weight > 0 ? 1 / weight : T(0);
  const auto add_parts = [&](T sum) {
    for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum * inverse;
  };
  mean_a = add_parts(mean_a);
  mean_b = diagonal ? mean_a : add_parts(mean_b);
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

// A block's chunk of rows.
template <bool kPlanes, bool kOneTile, class In, class T>
struct StatisticsChunk {
  using Panel = RowPanel<kPlanes, In>;
  const StatisticsArguments<In, T>& in;
  const StatisticsShared<kOneTile, In, T>& at;
  Panel panel;
  int rows, channels_of_one;
  bool diagonal;

  __device__ __forceinline__ StatisticsChunk(const StatisticsArguments<In, T>& arguments,
                                             const StatisticsShared<kOneTile, In, T>& shared,
                                             const ChannelTile& tile, unsigned chunk)
      : in(arguments),
        at(shared),
        panel(in.x, in.s, chunk * in.chunk_rows, tile.row),
        channels_of_one(tile.rows),
        diagonal(kOneTile || tile.row == tile.column) {
    const int64_t left = in.s.rows() - chunk * in.chunk_rows;
    rows = static_cast<int>(in.chunk_rows < left ? in.chunk_rows : left);
  }
  // Of a; off the diagonal, b has 64.
  __device__ __forceinline__ int channels() const {
    return kOneTile ? channels_of_one
                    : static_cast<int>(static_cast<int64_t>(at.places[kChannels]));
  }
  __device__ __forceinline__ void start_loads(int r) const {
    if (!in.vectors || r >= rows) return;
    panel.start_load(in.step, 0, rows - r, channels(), at.next_a);
    if (diagonal) return;
    panel.start_load(in.step, at.places[kBeyond], rows - r, kTile, at.next_b);
  }
  __device__ __forceinline__ void finish_load(int r, int64_t beyond, int width,
                                              const SharedArray<uint32_t>& words,
                                              In (&x)[Panel::kElements]) const {
    if (in.vectors) {
      panel.finish_load(words, x);
    } else {
      panel.load(in.step, beyond, rows - r, width, x);
    }
  }

  // Weights of the rows of a slab, and of the slab itself: by the first warp.
  __device__ __forceinline__ T row_weight(int r) const {
    const int n = r + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kDepth || n >= rows) return T(0);
    return in.p != nullptr ? in.p[at.places[kFirstRow] + n] : T(1);
  }
  __device__ __forceinline__ void store_weights(int half, T weight) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kDepth) return;
    at.p[half * kDepth + thread] = weight;
    const T sum = warp_sum(weight);
    if (thread != 0) return;
    at.slab[2 * half] = sum;
    at.slab[2 * half + 1] = sum > 0 ? 1 / sum : T(0);  // 0 times what is not finite is NaN
  }

  // The slab that begins with row r, the n-th of its run. Barrier inside, and one after.
  __device__ __forceinline__ void stage(int r, int n) {
    const int row = mean_row<T>(n), half = r / kDepth % 2;
    const bool plain = in.p == nullptr && rows - r >= kDepth;
    const T next_weight = row_weight(r + kDepth);
    In x[Panel::kElements];
    T v[Panel::kElements];
    finish_load(r, 0, channels(), at.next_a, x);
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
      finish_load(r, at.places[kBeyond], kTile, at.next_b, x);
      panel.subtract(x, at.origin, kTile, v);
      center(panel, plain, at.p, half * kDepth, inverse, at.means_b, row, v);
      panel.store(at.b, v);
    }
    if (threadIdx.x == 0) {
      const T weight = at.slab[2 * half];
      at.weights[n] = weight;
      at.weight[1] = (n > 0 ? static_cast<double>(at.weight[1]) : 0) + weight;
    }
    store_weights(half ^ 1, next_weight);
    panel.advance(in.step);
    start_loads(r + kDepth);
  }

  __device__ __forceinline__ void multiply_slabs(bool means, int slabs, TeamSums<T>& sums) const {
    constexpr int kUnroll = kOneTile ? 4 : 2;
    const int first = static_cast<int>(threadIdx.x) / kTeamThreads<T> * kTeamDepth<T>;
    const int depth = means ? mean_depth<T>(slabs + 1) : kTeamDepth<T>;
    const int left = means ? kMeansA : kSlabA;
    const int right = means ? kMeansB : diagonal && in.p == nullptr ? kSlabA : kSlabB;
    if (diagonal) {
      multiply<true, kUnroll>(at.slabs, left, right, first, depth, sums);
    } else {
      multiply<false, kUnroll>(at.slabs, left, right, first, depth, sums);
    }
  }

  __device__ __forceinline__ void sum() {
    TeamSums<T> sums;
    start_loads(0);
    store_weights(0, row_weight(0));
    if (threadIdx.x == 0) at.weight[0] = 0;
    for (int r = 0, slab = 0; r < rows; slab = 0) {  // once for each run
      while (true) {
        const bool means = r >= rows || slab == kRunSlabs;  // the last time around
        if (means) {
          merge_run<T>(at, slab, r == slab * kDepth, diagonal);
        } else {
          stage(r, slab);
        }
        __syncthreads();
        multiply_slabs(means, slab, sums);
        if (means) break;
        r += kDepth;
        ++slab;
      }
      if (threadIdx.x == 0) at.weight[0] += at.weight[1];
      gather(at.slabs, sums, [&](int, int i, int j, const Four<T>& four) {
        if (diagonal && j > i) return;
        store_products(in.s, channels(), diagonal ? channels() : kTile, i, j, four,
                       r > slab * kDepth, in.products + at.places[kProducts]);
      });
      sums.clear();
    }
    const int thread = static_cast<int>(threadIdx.x);
    if (diagonal && thread < channels()) in.means[at.places[kMeans] + thread] = at.mean[thread];
    if (thread == 0 && at.places[kWeight] >= 0) in.weights[at.places[kWeight]] = at.weight[0];
  }
};

}  // namespace cuda
}  // namespace fastwhiten
