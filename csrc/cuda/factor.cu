#include "../ops/factor.h"
#include "device.h"
#include "factor_stage.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(T)                                                          \
  template void run_factor(Device&, int64_t, int64_t, const T*, const T*, double, int64_t, \
                           const T*, T*, T*, T*);                                          \
  template void run_blend(Device&, int64_t, int64_t, const T*, const T*, double, T*);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

namespace {

std::tuple<Tensor, Tensor, Tensor> factor(const Tensor& covariance,
                                          const OptionalTensor& running_covariance,
                                          const OptionalTensor& rho, double batch_weight,
                                          double eps, int64_t kind, const OptionalTensor& start) {
  check_factor(covariance, running_covariance, rho, kind, start);
  check_devices("factor", covariance, running_covariance, rho, start);
  Device device(covariance);
  const ScalarType dtype = covariance.scalar_type();
  const int64_t G = covariance.size(0), D = covariance.size(1);
  Tensor values = kind == kCholesky ? device.empty({0}, dtype) : device.empty({G, D}, dtype);
  Tensor basis = kind == kCholesky ? device.empty({0}, dtype) : device.empty({G, D, D}, dtype);
  Tensor matrix = device.empty({G, D, D}, dtype);
  if (covariance.numel() == 0) return {values, basis, matrix};
  dispatch_accumulation(dtype, [&](auto accumulation) {
    using T = typename decltype(accumulation)::type;
    auto blended = device.allocate<T>(G * D * D);
    run_blend<Device, T>(device, G, D, data<T>(covariance), data<T>(running_covariance),
                         batch_weight, blended.get());
    run_factor<Device, T>(device, G, D, blended.get(), data<T>(rho), eps, kind, data<T>(start),
                          mutable_data<T>(values), mutable_data<T>(basis), mutable_data<T>(matrix));
  });
  return {values, basis, matrix};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("factor", TORCH_BOX(&fastwhiten::cuda::factor));
}
