// grad_sum [C] = sum_n g_n ; cross [G, D, D] = sum_n (x_n - mean) g_n^T (row: x's channel).
//
// One block per chunk of rows and tile of 64 x 64 channel pairs; a second kernel adds the chunks in
// order. Bytes: x and grad once per 64 channels, partial sums [chunks, G, D, D]. Determinism: rows
// are cut by shape alone, no atomics. Shared memory: two slabs, 17 KiB (float).
#pragma once

#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct BackwardReduceArguments {
  Layout s;
  int64_t chunks, chunk_rows;
  const In* x;     // [M, C] or [N, C, L]
  const In* grad;  // like x
  const T* mean;   // [C]
  T* products;     // [chunks, G, D, D]
  T* sums;         // [chunks, C]
};

template <class T>
constexpr int64_t kBackwardReduceSharedBytes = 2 * kSlab * sizeof(T);

template <class In, class T>
__global__ void __launch_bounds__(kThreads)
    backward_reduce_kernel(BackwardReduceArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> a(arena, 0, kSlab), b(arena, kSlab * sizeof(T), kSlab);
  const Layout s = in.s;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t tiles = channel_tiles(s, false), chunk = blockIdx.x / tiles, D = s.width;
  const ChannelTile tile = channel_tile(s, blockIdx.x % tiles, false);
  const int64_t first = chunk * in.chunk_rows;
  const int64_t last = first + in.chunk_rows < s.rows() ? first + in.chunk_rows : s.rows();
  const auto of_x = [&](int64_t r, int i) {
    const int64_t channel = tile.row + i;
    return i < tile.rows
               ? convert<T>(in.x[row_offset(s, r) + channel * s.length]) - in.mean[channel]
               : T(0);
  };
  const auto of_grad = [&](int64_t r, int j) {
    const int64_t channel = tile.column + j;
    return j < tile.columns ? convert<T>(in.grad[row_offset(s, r) + channel * s.length]) : T(0);
  };
  // Every column is summed by the tile whose rows are the first of its group (narrow: of its own).
  const bool adds_up = narrow(s) || tile.row % D == 0;
  Sums<T> sums;
  T grad_sum = 0;
  for (int64_t r = first; r < last; r += kDepth) {
    __syncthreads();  // the slabs of the round before are read
    stage(a, r, last, s.planes(), of_x);
    stage(b, r, last, s.planes(), of_grad);
    __syncthreads();
    if (adds_up && thread < kTile) {
      T part = 0;
#pragma unroll 8
      for (int k = 0; k < kDepth; ++k) part += b[k * kStride + thread];
      grad_sum += part;
    }
    multiply(a, b, sums);
  }
  sums.each([&](int i, int j, T sum) {
    const int64_t row = tile.row + i, column = tile.column + j;
    if (i >= tile.rows || j >= tile.columns || row / D != column / D) return;
    in.products[(chunk * s.groups * D + row) * D + column % D] = sum;
  });
  if (adds_up && thread < tile.columns) {
    in.sums[chunk * s.groups * D + tile.column + thread] = grad_sum;
  }
}

// out [count] = the sum of from [chunks, count] in order. From: what the stages above left behind.
template <class T>
struct AddChunksArguments {
  int64_t chunks, count;
  const T* from;
  T* out;
  int64_t second_count;  // a second array, added the same way by the same launch
  const T* second_from;
  T* second_out;
};

template <class T>
__global__ void __launch_bounds__(kThreads) add_chunks_kernel(AddChunksArguments<T> in) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool second = element >= in.count;
  const int64_t i = second ? element - in.count : element;
  const int64_t count = second ? in.second_count : in.count;
  if (i >= count) return;
  const T* const from = second ? in.second_from : in.from;
  T sum = 0;
  for (int64_t k = 0; k < in.chunks; ++k) sum += from[k * count + i];
  (second ? in.second_out : in.out)[i] = sum;
}

template <class Device, class T>
void add_chunks(Device& device, const AddChunksArguments<T>& arguments) {
  device.launch(add_chunks_kernel<T>, ceil_div(arguments.count + arguments.second_count, kThreads),
                kThreads, 0, arguments);
}

template <class Device, class In, class T>
void run_backward_reduce(Device& device, const BackwardReduce<In, T>& args) {
  const int64_t tiles = channel_tiles(args.s, false), C = args.s.groups * args.s.width,
                square = C * args.s.width;
  const Chunks chunks = cut(args.s.rows(), tiles);
  const bool whole = chunks.count == 1;  // the one chunk is the result
  auto products = device.template allocate<T>(whole ? 0 : chunks.count * square);
  auto sums = device.template allocate<T>(whole ? 0 : chunks.count * C);
  device.launch(backward_reduce_kernel<In, T>, tiles * chunks.count, kThreads,
                kBackwardReduceSharedBytes<T>,
                BackwardReduceArguments<In, T>{args.s, chunks.count, chunks.size, args.x, args.grad,
                                               args.mean, whole ? args.cross : products.get(),
                                               whole ? args.grad_sum : sums.get()});
  if (whole) return;
  add_chunks(device, AddChunksArguments<T>{chunks.count, square, products.get(), args.cross, C,
                                           sums.get(), args.grad_sum});
}

}  // namespace cuda
}  // namespace fastwhiten
