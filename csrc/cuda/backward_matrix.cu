#include "../ops/backward_matrix.h"
#include "backward_matrix.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

template void run_backward_matrix(Device&, int64_t, int64_t, const float*, const float*,
                                  const float*, const float*, const float*, const float*, double,
                                  int64_t, float*, float*);
template void run_backward_matrix(Device&, int64_t, int64_t, const double*, const double*,
                                  const double*, const double*, const double*, const double*,
                                  double, int64_t, double*, double*);

namespace {

std::tuple<Tensor, Tensor> backward_matrix(const Tensor& cross, const Tensor& eigenvalues,
                                           const Tensor& basis, const Tensor& matrix,
                                           const OptionalTensor& gamma, const OptionalTensor& rho,
                                           double batch_weight, int64_t kind) {
  check_backward_matrix(cross, eigenvalues, basis, matrix, gamma, rho, kind);
  check_devices("backward_matrix", cross, eigenvalues, basis, matrix, gamma, rho);
  Device device(cross);
  const int64_t G = cross.size(0), D = cross.size(1);
  Tensor inner = device.empty({G, D, D}, cross.scalar_type());
  Tensor grad_gamma = device.empty({G * D}, cross.scalar_type());
  if (cross.numel() == 0) return {inner, grad_gamma};
  dispatch_accumulation(cross.scalar_type(), [&](auto accumulation) {
    using T = typename decltype(accumulation)::type;
    run_backward_matrix<Device, T>(device, G, D, data<T>(cross), data<T>(eigenvalues),
                                   data<T>(basis), data<T>(matrix), data<T>(gamma), data<T>(rho),
                                   batch_weight, kind, mutable_data<T>(inner),
                                   mutable_data<T>(grad_gamma));
  });
  return {inner, grad_gamma};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("backward_matrix", TORCH_BOX(&fastwhiten::cuda::backward_matrix));
}
