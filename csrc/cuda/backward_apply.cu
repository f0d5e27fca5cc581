#include "../ops/backward_apply.h"
#include "backward_apply.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                      \
  template void run_backward_apply(Device&, const Layout&, const In*, const In*, const T*, \
                                   const T*, const T*, const T*, const T*, const T*, In*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

namespace {

Tensor backward_apply(const Tensor& x, const Tensor& grad, const Tensor& mean,
                      const Tensor& grad_sum, const Tensor& matrix, const Tensor& inner,
                      const OptionalTensor& gamma, const OptionalTensor& row_weight) {
  const Layout s = check_backward_apply(x, grad, mean, grad_sum, matrix, inner, gamma, row_weight);
  check_devices("backward_apply", x, grad, mean, grad_sum, matrix, inner, gamma, row_weight);
  Device device(x);
  Tensor dx = device.empty_like(x);
  if (s.numel() == 0) return dx;
  dispatch_device(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_backward_apply<Device, In, T>(device, s, data<In>(x), data<In>(grad), data<T>(mean),
                                      data<T>(grad_sum), data<T>(matrix), data<T>(inner),
                                      data<T>(gamma), data<T>(row_weight), mutable_data<In>(dx));
  });
  return dx;
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("backward_apply", TORCH_BOX(&fastwhiten::cuda::backward_apply));
}
