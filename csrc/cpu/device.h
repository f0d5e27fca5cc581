// The Device of ops.h on the CPU: memory, and the solvers. Who works is decided in parallel.h.
#pragma once

#include <algorithm>

#include "../common/stable.h"

namespace fastwhiten::cpu {

class Device {
 public:
  template <class In>
  using Element = In;
  static constexpr bool kIterates = false;

  template <class... Tensors>
  explicit Device(const char*, const Tensors&...) {}  // PyTorch has looked where they lie

  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    return fastwhiten::empty(sizes, dtype, aoti_torch_device_type_cpu(), 0);
  }

  // a [B, D, D], its lower triangle -> ascending values [B, D], vectors [B, D, D] in columns. Both
  // solvers are direct: a start would save them nothing, and there are no sweeps to count.
  template <class T>
  void eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start,
            int32_t* sweeps) const;
};

template <class T>
void fill(const Device&, T* out, int64_t count, T value) {
  std::fill_n(out, count, value);
}

}  // namespace fastwhiten::cpu
