#include "../ops/apply.h"
#include "apply.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                      \
  template void run_apply(Device&, const Layout&, const In*, const T*, const T*, const T*, \
                          const T*, In*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

namespace {

Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& matrix, const OptionalTensor& gamma,
             const OptionalTensor& beta) {
  const Layout s = check_apply(x, mean, matrix, gamma, beta);
  check_devices("apply", x, mean, matrix, gamma, beta);
  Device device(x);
  Tensor y = device.empty_like(x);
  if (s.numel() == 0) return y;
  dispatch_device(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_apply<Device, In, T>(device, s, data<In>(x), data<T>(mean), data<T>(matrix), data<T>(gamma),
                             data<T>(beta), mutable_data<In>(y));
  });
  return y;
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("apply", TORCH_BOX(&fastwhiten::cuda::apply));
}
