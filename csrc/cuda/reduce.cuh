// The place of a thread in its block, and sums over threads in a fixed order.
#pragma once

#include "platform.cuh"

namespace fastwhiten {
namespace cuda {

// The place of the calling thread.
struct Place {
  int lane, warp, warps;
};
__device__ __forceinline__ Place place() {
  return {static_cast<int>(threadIdx.x % 32), static_cast<int>(threadIdx.x / 32),
          static_cast<int>(blockDim.x / 32)};
}

// The sum over a warp, or over each half of it, in every lane with the same bits.
template <class T>
__device__ __forceinline__ T warp_sum(T value, int width = 32) {
  for (int lanes = width / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

constexpr int kReduceWords = 32;  // elements of shared memory that a sum over a block works in

// Every value becomes its sum over all threads, in every thread. Lanes are added in a tree, warps
// in order. The block is one-dimensional, of whole warps; scratch [N, kReduceWords] must be out of
// use, and may be used again after the next barrier.
template <int N, class T>
__device__ __forceinline__ void block_sums(T (&values)[N], const SharedArray<T>& scratch) {
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = warp_sum(values[n]);
    if (thread % 32 == 0) scratch[n * kReduceWords + thread / 32] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
    for (int w = 0; w < warps; ++w) values[n] += scratch[n * kReduceWords + w];
  }
}

template <class T>
__device__ __forceinline__ T block_sum(T value, const SharedArray<T>& scratch) {
  T values[1] = {value};
  block_sums(values, scratch);
  return values[0];
}

}  // namespace cuda
}  // namespace fastwhiten
