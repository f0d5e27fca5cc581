// Sums that were cut into chunks among blocks: how they are cut, and added up.
//
// The chunks of one number are shared by several warps, each of which adds its own in order; what
// the warps have found is added in order, too. Bytes: what is added, once. Determinism: by the
// number of chunks alone. Shared memory: 4 KiB in float.
#pragma once

#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

// Chunks are cut by shape alone, so that the same input gives the same bits.
struct Chunks {
  int64_t count, size;  // size: terms of each but the last, a multiple of kDepth
};
constexpr int64_t kMostChunks = 264;  // two for every multiprocessor of the largest devices
#ifdef FASTWHITEN_EMULATE
inline int64_t most_chunks = kMostChunks;  // tests ask for few: long ones of few rows
#else
constexpr int64_t most_chunks = kMostChunks;
#endif
inline Chunks cut(int64_t terms, int64_t blocks_per_chunk) {
  constexpr int64_t kSlabs = 2;  // below, adding up the chunks costs as much as they save
  const int64_t slabs = ceil_div(terms, kDepth);
  const int64_t wanted = most_chunks / blocks_per_chunk > 1 ? most_chunks / blocks_per_chunk : 1;
  const int64_t own = ceil_div(slabs, wanted) > kSlabs ? ceil_div(slabs, wanted) : kSlabs;
  return {ceil_div(terms, own * kDepth), own * kDepth};
}

constexpr int kAddThreads = 1024;  // of kernels that add chunks
constexpr int kAddWarps = kAddThreads / 32;
constexpr int kAddStride = 33;  // of a warp's numbers: neither rows nor columns meet in a bank
constexpr int kAddScratch = kAddWarps * kAddStride;

// How the warps of a block share chunks: 2^log2_parts warps have a row of 32 numbers.
struct AddShares {
  static constexpr int kMost = (kMostChunks + kAddWarps - 1) / kAddWarps;  // of a warp
  int chunks, log2_parts = 0;
  explicit AddShares(int64_t count) : chunks(static_cast<int>(count)) {
    while (1 << log2_parts < kAddWarps && kMost << log2_parts < chunks) ++log2_parts;
  }
  __host__ __device__ int rows() const { return kAddWarps >> log2_parts; }  // of a block

  __device__ __forceinline__ int part() const {
    return static_cast<int>(threadIdx.x) / 32 & ((1 << log2_parts) - 1);
  }
  __device__ __forceinline__ int row() const {
    return static_cast<int>(threadIdx.x) / 32 >> log2_parts;
  }
  // Of the numbers that the launch adds up, the one of a thread.
  __device__ __forceinline__ int64_t element() const {
    return (int64_t{blockIdx.x} * rows() + row()) * 32 + static_cast<int>(threadIdx.x) % 32;
  }
  // f(k) for the chunks k of a warp, all loads at once. Where there are several, their arrays are
  // small: k times the length of one is an int.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int n = 0; n < kMost; ++n) {
      const int k = part() + (n << log2_parts);
      if (k < chunks) f(k);
    }
  }
  // Every value becomes its sum over the parts, in all of their threads: warp w adds up what all
  // warps have for lane w, in a tree. All threads call it, with scratch [N, kAddScratch] that only
  // other such calls use: no thread reads what another writes next.
  template <int N, class T>
  __device__ __forceinline__ void sums(T (&values)[N], const SharedArray<T>& scratch) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int own = warp * kAddStride + lane, turned = lane * kAddStride + warp;
#pragma unroll
    for (int n = 0; n < N; ++n) scratch[n * kAddScratch + own] = values[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      T sum = scratch[n * kAddScratch + turned];
      for (int lanes = (1 << log2_parts) / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      }
      scratch[n * kAddScratch + turned] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = scratch[n * kAddScratch + own];
  }
};

// out [count] = the sum of from [chunks, count].
template <class T>
struct AddChunksArguments {
  AddShares shares;
  int64_t count;
  const T* from;
  T* out;
  int64_t second_count;  // a second array, added the same way by the same launch
  const T* second_from;
  T* second_out;
};

template <class T>
__global__ void __launch_bounds__(kAddThreads) add_chunks_kernel(AddChunksArguments<T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> scratch(arena, 0, kAddScratch);
  const int64_t element = in.shares.element();
  const bool second = element >= in.count;
  const int64_t i = second ? element - in.count : element;
  const int64_t count = second ? in.second_count : in.count;
  const T* const from = (second ? in.second_from : in.from) + i;
  T sum[1] = {};
  if (i < count) in.shares.each([&](int k) { sum[0] += from[k * static_cast<int>(count)]; });
  in.shares.sums(sum, scratch);
  if (in.shares.part() == 0 && i < count) (second ? in.second_out : in.out)[i] = sum[0];
}

template <class Device, class T>
void add_chunks(Device& device, int64_t chunks, int64_t count, const T* from, T* out,
                int64_t second_count = 0, const T* second_from = nullptr, T* second_out = nullptr) {
  const AddShares shares(chunks);
  device.launch(
      add_chunks_kernel<T>, ceil_div(count + second_count, 32 * shares.rows()), kAddThreads,
      static_cast<int64_t>(kAddScratch * sizeof(T)),
      AddChunksArguments<T>{shares, count, from, out, second_count, second_from, second_out});
}

}  // namespace cuda
}  // namespace fastwhiten
