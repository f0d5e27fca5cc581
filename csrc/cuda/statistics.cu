#include "../ops/statistics.h"
#include "device.h"
#include "fill.cuh"
#include "statistics.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                         \
  template void run_statistics(Device&, const Layout&, const In*, const T*, T*, T*, const T*, \
                               double, T*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

namespace {

std::tuple<Tensor, Tensor> statistics(const Tensor& x, const OptionalTensor& row_weight,
                                      int64_t groups, bool double_precision) {
  const Layout s = check_statistics(x, row_weight, groups, double_precision);
  check_devices("statistics", x, row_weight);
  Device device(x);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  Tensor mean = device.empty({s.channels}, dtype);
  Tensor covariance = device.empty({s.groups, s.width, s.width}, dtype);
  dispatch_device(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    if (s.numel() == 0) {  // no rows: the mean of nothing
      fill_nan(device, mutable_data<T>(mean), mean.numel());
      fill_nan(device, mutable_data<T>(covariance), covariance.numel());
      return;
    }
    run_statistics<Device, In, T>(device, s, data<In>(x), data<T>(row_weight),
                                  mutable_data<T>(mean), mutable_data<T>(covariance), nullptr, 1.0,
                                  nullptr);
  });
  return {mean, covariance};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("statistics", TORCH_BOX(&fastwhiten::cuda::statistics));
}
