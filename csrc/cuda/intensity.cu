#include "../ops/intensity.h"
#include "device.h"
#include "intensity.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                          \
  template void run_intensity(Device&, const Layout&, const In*, const T*, const T*, const T*, \
                              const T*, double, int64_t, double, T*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

namespace {

Tensor intensity(const Tensor& x, const Tensor& mean, const Tensor& covariance,
                 const OptionalTensor& running_covariance, const OptionalTensor& row_weight,
                 double batch_weight, int64_t method, double value) {
  const Layout s = check_intensity(x, mean, covariance, running_covariance, row_weight, method);
  check_devices("intensity", x, mean, covariance, running_covariance, row_weight);
  STD_TORCH_CHECK(s.numel() > 0, "intensity: expected at least one row");
  Device device(x);
  Tensor rho = device.empty({s.groups}, mean.scalar_type());
  dispatch_device(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_intensity<Device, In, T>(device, s, data<In>(x), data<T>(mean), data<T>(covariance),
                                 data<T>(running_covariance), data<T>(row_weight), batch_weight,
                                 method, value, mutable_data<T>(rho));
  });
  return rho;
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("intensity", TORCH_BOX(&fastwhiten::cuda::intensity));
}
