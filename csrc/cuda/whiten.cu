#include "../ops/whiten.h"
#include "device.h"
#include "whiten.cuh"

namespace fastwhiten {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> whiten_forward(
    const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& row_weight, const OptionalTensor& running_covariance, int64_t groups,
    double batch_weight, double eps, int64_t kind, bool double_precision, int64_t method,
    double value, const OptionalTensor& start) {
  const Layout s = check_whiten_forward(x, gamma, beta, row_weight, running_covariance, groups,
                                        kind, double_precision, method, start);
  check_devices("whiten_forward", x, gamma, beta, row_weight, running_covariance, start);
  STD_TORCH_CHECK(s.numel() > 0, "whiten_forward: expected at least one row");
  Device device(x);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  const int64_t G = s.groups, D = s.width;
  const bool spectral = kind != kCholesky;
  Tensor y = device.empty_like(x), mean = device.empty({s.channels}, dtype);
  Tensor covariance = device.empty({G, D, D}, dtype), matrix = device.empty({G, D, D}, dtype);
  Tensor values = spectral ? device.empty({G, D}, dtype) : device.empty({0}, dtype);
  Tensor basis = spectral ? device.empty({G, D, D}, dtype) : device.empty({0}, dtype);
  Tensor rho = device.empty({method == kNoShrinkage ? 0 : G}, dtype);
  dispatch_device(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_whiten_forward(
        device, WhitenForward<In, T>{s, data<In>(x), data<T>(gamma), data<T>(beta),
                                     data<T>(row_weight), data<T>(running_covariance), batch_weight,
                                     eps, kind, method, value, data<T>(start), mutable_data<In>(y),
                                     mutable_data<T>(mean), mutable_data<T>(covariance),
                                     mutable_data<T>(values), mutable_data<T>(basis),
                                     mutable_data<T>(matrix), mutable_data<T>(rho)});
  });
  return {y, mean, covariance, values, basis, matrix, rho};
}

std::tuple<Tensor, Tensor, Tensor> whiten_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& mean, const Tensor& eigenvalues,
                                                   const Tensor& basis, const Tensor& matrix,
                                                   const OptionalTensor& gamma,
                                                   const OptionalTensor& rho,
                                                   const OptionalTensor& row_weight,
                                                   double batch_weight, int64_t kind) {
  const Layout s = check_whiten_backward(grad, x, mean, eigenvalues, basis, matrix, gamma, rho,
                                         row_weight, kind);
  check_devices("whiten_backward", x, grad, mean, eigenvalues, basis, matrix, gamma, rho,
                row_weight);
  STD_TORCH_CHECK(s.numel() > 0, "whiten_backward: expected at least one row");
  Device device(x);
  const ScalarType dtype = mean.scalar_type();
  Tensor dx = device.empty_like(x);
  Tensor grad_gamma = device.empty({s.channels}, dtype);
  Tensor grad_sum = device.empty({s.channels}, dtype);
  dispatch_device(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_whiten_backward(
        device,
        WhitenBackward<In, T>{s, data<In>(grad), data<In>(x), data<T>(mean), data<T>(eigenvalues),
                              data<T>(basis), data<T>(matrix), data<T>(gamma), data<T>(rho),
                              data<T>(row_weight), batch_weight, kind, mutable_data<In>(dx),
                              mutable_data<T>(grad_gamma), mutable_data<T>(grad_sum)});
  });
  return {dx, grad_gamma, grad_sum};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("whiten_forward", TORCH_BOX(&fastwhiten::cuda::whiten_forward));
  m.impl("whiten_backward", TORCH_BOX(&fastwhiten::cuda::whiten_backward));
}
