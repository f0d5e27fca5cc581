// Sums over the threads of a block, in a fixed order.
#pragma once

#include "platform.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int kReduceWords = 32;  // elements of shared memory that block_sum works in

// The sum of `value` over all threads, in every thread. Lanes are added in a tree, warps in order.
// The block is one-dimensional, of whole warps; scratch may be reused after the next barrier.
template <class T>
__device__ __forceinline__ T block_sum(T value, const SharedArray<T>& scratch) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  __syncthreads();  // scratch may still be read
  if (thread % 32 == 0) scratch[thread / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < warps; ++w) sum += scratch[w];
  return sum;
}

}  // namespace cuda
}  // namespace fastwhiten
