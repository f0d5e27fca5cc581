// Constants in memory: what an empty batch leaves behind.
#pragma once

#include "platform.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
__global__ void __launch_bounds__(256) fill_kernel(int64_t count, T value, T* out) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (e < count) out[e] = value;
}

template <class Device, class T>
void fill(Device& device, T* out, int64_t count, T value) {
  device.launch(fill_kernel<T>, (count + 255) / 256, 256, 0, count, value, out);
}

}  // namespace cuda
}  // namespace fastwhiten
