#include "../ops/sample.h"
#include "device.h"
#include "fill.cuh"
#include "sample_products.cuh"

namespace fastwhiten {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> sample_statistics(const Tensor& x,
                                                     const OptionalTensor& row_weight,
                                                     int64_t groups, bool double_precision) {
  const Layout s = check_sample_statistics(x, row_weight, groups, double_precision);
  check_devices("sample_statistics", x, row_weight);
  Device device(x);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  Tensor mean = device.empty({s.channels}, dtype);
  Tensor scaled = device.empty({s.samples, s.channels}, dtype);
  Tensor gram = device.empty({s.groups, s.samples, s.samples}, dtype);
  dispatch_device(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    if (s.numel() == 0) return fill_nan(device, mutable_data<T>(mean), mean.numel());
    run_sample_statistics<Device, In, T>(device, s, data<In>(x), data<T>(row_weight),
                                         mutable_data<T>(mean), mutable_data<T>(scaled),
                                         mutable_data<T>(gram));
  });
  return {mean, scaled, gram};
}

std::tuple<Tensor, Tensor> sample_apply(const Tensor& scaled, const Tensor& eigenvalues,
                                        const Tensor& eigenvectors,
                                        const OptionalTensor& row_weight, const OptionalTensor& rho,
                                        double eps, ScalarType out_dtype) {
  const Layout s =
      check_sample_apply(scaled, eigenvalues, eigenvectors, row_weight, rho, out_dtype);
  check_devices("sample_apply", scaled, eigenvalues, eigenvectors, row_weight, rho);
  Device device(scaled);
  Tensor y = device.empty({s.samples, s.channels}, out_dtype);
  Tensor projected = device.empty({s.groups, s.samples, s.width}, scaled.scalar_type());
  if (s.numel() == 0) return {y, projected};
  dispatch_device(out_dtype, scaled.scalar_type(), [&](auto out, auto accumulation) {
    using Out = typename decltype(out)::type;
    using T = typename decltype(accumulation)::type;
    run_sample_apply<Device, Out, T>(device, s, data<T>(scaled), data<T>(eigenvalues),
                                     data<T>(eigenvectors), data<T>(row_weight), data<T>(rho), eps,
                                     mutable_data<Out>(y), mutable_data<T>(projected));
  });
  return {y, projected};
}

Tensor sample_backward(const Tensor& grad, const Tensor& projected, const Tensor& eigenvalues,
                       const Tensor& eigenvectors, const OptionalTensor& row_weight,
                       const OptionalTensor& rho, double eps) {
  const Layout s =
      check_sample_backward(grad, projected, eigenvalues, eigenvectors, row_weight, rho);
  check_devices("sample_backward", grad, projected, eigenvalues, eigenvectors, row_weight, rho);
  Device device(grad);
  Tensor dx = device.empty({s.samples, s.channels}, grad.scalar_type());
  if (s.numel() == 0) return dx;
  dispatch_device(grad.scalar_type(), projected.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run_sample_backward<Device, In, T>(
        device, s, data<In>(grad), data<T>(projected), data<T>(eigenvalues), data<T>(eigenvectors),
        data<T>(row_weight), data<T>(rho), eps, mutable_data<In>(dx));
  });
  return dx;
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("sample_statistics", TORCH_BOX(&fastwhiten::cuda::sample_statistics));
  m.impl("sample_apply", TORCH_BOX(&fastwhiten::cuda::sample_apply));
  m.impl("sample_backward", TORCH_BOX(&fastwhiten::cuda::sample_backward));
}
