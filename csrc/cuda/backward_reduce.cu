#include "../ops/backward_reduce.h"
#include "backward_reduce.cuh"
#include "device.h"
#include "fill.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_backward_reduce(Device&, const Layout&, const In*, const In*, const T*, T*, T*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

namespace {

std::tuple<Tensor, Tensor> backward_reduce(const Tensor& x, const Tensor& grad, const Tensor& mean,
                                           int64_t groups) {
  const Layout s = check_backward_reduce(x, grad, mean, groups);
  check_devices("backward_reduce", x, grad, mean);
  Device device(x);
  Tensor grad_sum = device.empty({s.channels}, mean.scalar_type());
  Tensor cross = device.empty({s.groups, s.width, s.width}, mean.scalar_type());
  dispatch_device(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    if (s.numel() == 0) {
      fill(device, mutable_data<T>(grad_sum), grad_sum.numel(), T(0));
      fill(device, mutable_data<T>(cross), cross.numel(), T(0));
      return;
    }
    run_backward_reduce<Device, In, T>(device, s, data<In>(x), data<In>(grad), data<T>(mean),
                                       mutable_data<T>(grad_sum), mutable_data<T>(cross));
  });
  return {grad_sum, cross};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("backward_reduce", TORCH_BOX(&fastwhiten::cuda::backward_reduce));
}
