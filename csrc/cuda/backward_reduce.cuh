// grad_sum [C] = sum_n g_n ; cross [G, D, D] = sum_n (x_n - mean) g_n^T (row: x's channel).
//
// One block per chunk of rows and tile of 64 x 64 channel pairs; a second kernel adds the chunks.
// Bytes: x and grad once per 64 channels, partial sums [chunks, G, D, D]. Determinism: rows are cut
// by shape alone, no atomics. A float32 sum is stored after 31 slabs of 32 rows, and the next one
// added to it: long sums are made of short ones, whose rounding errors do not grow with the number
// of rows. Shared memory: two slabs, and what gather needs, 32 KiB (float).
#pragma once

#include "chunks.cuh"
#include "panels.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct BackwardReduceArguments {
  Layout s;
  ChannelTiling tiling;
  SlabStep step;
  bool vectors;  // moves_vectors
  int64_t chunk_rows;
  const In* x;     // [M, C] or [N, C, L]
  const In* grad;  // like x
  const T* mean;   // [C]
  T* products;     // [chunks, G, D, D]
  T* sums;         // [chunks, C]
};

enum ReducePlace : int {
  kToProducts,  // of the block, in the arrays of the launch
  kToSums,      // negative where another block has them
  kToGrad,      // from x's numbers to grad's
  kReducePlaces,
};

// Shared memory of a block: slabs of x - mean and grad, and what is under way of the next ones,
// together what gather needs; means.
template <class In, class T>
struct ReduceShared {
  static constexpr int kWords = RowPanel<true, In>::kWords;  // of one operand
  static constexpr int64_t kSlabs = 2 * kSlab * sizeof(T) + 2 * kWords * 4;
  static constexpr int64_t kRegions = kGatherElements<T> * sizeof(T);
  static constexpr int64_t kMeans = kSlabs > kRegions ? kSlabs : kRegions;
  static constexpr int64_t kPlaces = kMeans + kTile * sizeof(T);
  static constexpr int64_t kBytes = kPlaces + kReducePlaces * sizeof(int64_t);
  __device__ explicit ReduceShared(char* arena)
      : slabs(arena, 0, 2 * kSlab),
        a(arena, 0, kSlab),
        b(arena, kSlab * sizeof(T), kSlab),
        regions(arena, 0, kGatherElements<T>),
        x(arena, 2 * kSlab * sizeof(T), kWords),
        grad(arena, 2 * kSlab * sizeof(T) + kWords * 4, kWords),
        mean(arena, kMeans, kTile),
        places(arena, kPlaces, kReducePlaces) {}
  SharedArray<T> slabs, a, b, regions;
  SharedArray<uint32_t> x, grad;
  SharedArray<T> mean;
  SharedArray<int64_t> places;
};

// A block's chunk of rows.
template <bool kPlanes, class In, class T>
struct ReduceChunk {
  using Panel = RowPanel<kPlanes, In>;
  const BackwardReduceArguments<In, T>& in;
  const ReduceShared<In, T>& at;
  const ChannelTile& tile;
  Panel panel;
  int rows;

  __device__ __forceinline__ ReduceChunk(const BackwardReduceArguments<In, T>& arguments,
                                         const ReduceShared<In, T>& shared,
                                         const ChannelTile& where, unsigned chunk)
      : in(arguments), at(shared), tile(where), panel(in.x, in.s, chunk * in.chunk_rows, tile.row) {
    const int64_t left = in.s.rows() - chunk * in.chunk_rows;
    rows = static_cast<int>(in.chunk_rows < left ? in.chunk_rows : left);
  }
  __device__ __forceinline__ void start_loads(int r) const {
    if (!in.vectors) return;
    panel.start_load(in.step, 0, rows - r, tile.rows, at.x);
    panel.start_load(in.step, at.places[kToGrad], rows - r, tile.columns, at.grad);
  }

  // The slab that begins with row r. Barrier inside, and one after.
  __device__ __forceinline__ void stage(int r, T (&grad_sum)[Panel::kChannels]) {
    In x[Panel::kElements], grad[Panel::kElements];
    if (in.vectors) {
      panel.finish_load(at.x, x);
      panel.finish_load(at.grad, grad);
    } else {
      panel.load(in.step, 0, rows - r, tile.rows, x);
      panel.load(in.step, at.places[kToGrad], rows - r, tile.columns, grad);
    }
    __syncthreads();  // the slabs before are read
    T v[Panel::kElements], part[Panel::kChannels] = {};
    panel.subtract(x, at.mean, 0, v);
    panel.store(at.a, v);  // rows that do not exist are multiplied by 0
#pragma unroll
    for (int e = 0; e < Panel::kElements; ++e) {
      v[e] = convert<T>(grad[e]);
      part[Panel::channel_of(e)] += v[e];
    }
    panel.store(at.b, v);
#pragma unroll
    for (int n = 0; n < Panel::kChannels; ++n) grad_sum[n] += part[n];
    panel.advance(in.step);
  }

  __device__ __forceinline__ void sum() {
    TeamSums<T> sums;
    T grad_sum[Panel::kChannels] = {};
    const int from = static_cast<int>(threadIdx.x) / kTeamThreads<T> * kTeamDepth<T>;
    start_loads(0);
    for (int r = 0, slab = 0; r < rows; r += kDepth) {
      stage(r, grad_sum);
      const bool goes_on = ++slab < kRunSlabs && r + kDepth < rows;
      if (goes_on) start_loads(r + kDepth);
      __syncthreads();
      multiply<false, 2>(at.slabs, 0, kSlab, from, kTeamDepth<T>, sums);
      if (goes_on) continue;
      gather(at.regions, sums, [&](int, int i, int j, const Four<T>& four) {
        store_products(in.s, tile.rows, tile.columns, i, j, four, r >= slab * kDepth,
                       in.products + at.places[kToProducts]);
      });
      sums.clear();
      slab = 0;
      if (r + kDepth >= rows) break;
      __syncthreads();  // what gather worked in is read
      start_loads(r + kDepth);
    }
    Panel::add_lanes(grad_sum);
    if (!panel.leads() || at.places[kToSums] < 0) return;
#pragma unroll
    for (int n = 0; n < Panel::kChannels; ++n) {
      const int c = panel.spot.column() + Panel::column_step(n);
      if (c < tile.columns) in.sums[at.places[kToSums] + c] = grad_sum[n];
    }
  }
};

template <class In, class T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_reduce_kernel(BackwardReduceArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const ReduceShared<In, T> at(arena);
  const Layout s = in.s;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned chunk = blockIdx.x / in.tiling.count;
  const ChannelTile tile = in.tiling.tile(s, blockIdx.x - chunk * in.tiling.count);
  const int64_t C = s.groups * s.width;
  if (thread == 0) {
    at.places[kToProducts] = chunk * C * s.width + tile.place(s);
    // Every column is summed by the tile whose rows are the first of its group (narrow: its own).
    at.places[kToSums] = tile.row + tile.in_group == tile.column ? chunk * C + tile.column : -1;
    at.places[kToGrad] = (reinterpret_cast<intptr_t>(in.grad) - reinterpret_cast<intptr_t>(in.x)) /
                             static_cast<intptr_t>(sizeof(In)) +
                         (tile.column - tile.row) * s.length;
  }
  if (thread < kTile) at.mean[thread] = thread < tile.rows ? in.mean[tile.row + thread] : T(0);
  __syncthreads();
  if (s.planes()) {
    ReduceChunk<true, In, T>(in, at, tile, chunk).sum();
  } else {
    ReduceChunk<false, In, T>(in, at, tile, chunk).sum();
  }
}

template <class Device, class In, class T>
void run_backward_reduce(Device& device, const BackwardReduce<In, T>& args) {
  const ChannelTiling tiling(args.s, false);
  const int64_t C = args.s.groups * args.s.width, square = C * args.s.width;
  const Chunks chunks = cut(args.s.rows(), tiling.count);
  const bool whole = chunks.count == 1;  // the one chunk is the result
  auto products = device.template allocate<T>(whole ? 0 : chunks.count * square);
  auto sums = device.template allocate<T>(whole ? 0 : chunks.count * C);
  device.launch(backward_reduce_kernel<In, T>, tiling.count * chunks.count, kThreads,
                ReduceShared<In, T>::kBytes,
                BackwardReduceArguments<In, T>{
                    args.s, tiling, SlabStep(args.s), moves_vectors(args.s, {args.x, args.grad}),
                    chunks.size, args.x, args.grad, args.mean, whole ? args.cross : products.get(),
                    whole ? args.grad_sum : sums.get()});
  if (whole) return;
  add_chunks<Device, T>(device, chunks.count, square, products.get(), args.cross, C, sums.get(),
                        args.grad_sum);
}

}  // namespace cuda
}  // namespace fastwhiten
