// The row of largest weight (the first one on ties): weighted statistics take differences from it.
//
// With sum p = 1, its weight is 1 / M at least, hence |x_row - mean| <= sqrt(M) std: differences
// from it lose no digits to |mean| >> std. Row 0 may have no weight and lie anywhere. One block;
// p once. A weight that is NaN selects nothing (the statistics are NaN then). Shared memory: 64 to
// 128 bytes. Determinism: by weight, then by number.
#pragma once

#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
struct Heaviest {
  T weight = T(-1);
  int64_t row = 0;
  __device__ __forceinline__ void take(T other, int64_t other_row) {
    if (other > weight || (other == weight && other_row < row)) {
      weight = other;
      row = other_row;
    }
  }
};

// The heaviest of all lanes' rows, in every lane.
template <class T>
__device__ __forceinline__ Heaviest<T> warp_heaviest(Heaviest<T> mine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const T weight = __shfl_xor_sync(0xffffffffu, mine.weight, lanes);
    const int64_t row = __shfl_xor_sync(0xffffffffu, mine.row, lanes);
    mine.take(weight, row);
  }
  return mine;
}

constexpr int kHeaviestWarps = kThreads / 32;
template <class T>
constexpr int64_t kHeaviestSharedBytes = kHeaviestWarps * (sizeof(int64_t) + sizeof(T));

template <class T>
__global__ void __launch_bounds__(kThreads)
    heaviest_row_kernel(Layout s, const T* p, int64_t* offset) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<int64_t> places(arena, 0, kHeaviestWarps);
  const SharedArray<T> weights(arena, kHeaviestWarps * sizeof(int64_t), kHeaviestWarps);
  const int thread = static_cast<int>(threadIdx.x);
  Heaviest<T> best;
#pragma unroll 4
  for (int64_t r = thread; r < s.rows(); r += kThreads) best.take(p[r], r);
  best = warp_heaviest(best);
  if (thread % 32 == 0) {
    places[thread / 32] = best.row;
    weights[thread / 32] = best.weight;
  }
  __syncthreads();
  if (thread != 0) return;
  for (int w = 1; w < kHeaviestWarps; ++w) best.take(weights[w], places[w]);
  *offset = row_offset(s, best.row);
}

// The memory offset of the heaviest row's channel 0 is going to lie there; null without weights:
// row 0, at offset 0, serves then.
template <class Device, class T>
const int64_t* run_heaviest_row(Device& device, const Layout& s, const T* p, int64_t* offset) {
  if (p == nullptr) return nullptr;
  device.launch(heaviest_row_kernel<T>, 1, kThreads, kHeaviestSharedBytes<T>, s, p, offset);
  return offset;
}

}  // namespace cuda
}  // namespace fastwhiten
