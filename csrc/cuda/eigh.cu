#include "../ops/eigh.h"
#include "device.h"

namespace fastwhiten {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor> eigh(const Tensor& a) {
  check_eigh(a);
  check_devices("eigh", a);
  Device device(a);
  const int64_t B = a.size(0), D = a.size(1);
  Tensor values = device.empty({B, D}, a.scalar_type());
  Tensor vectors = device.empty({B, D, D}, a.scalar_type());
  if (a.numel() == 0) return {values, vectors};
  dispatch_accumulation(a.scalar_type(), [&](auto accumulation) {
    using T = typename decltype(accumulation)::type;
    device.eigh(B, D, data<T>(a), mutable_data<T>(values), mutable_data<T>(vectors));
  });
  return {values, vectors};
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("eigh", TORCH_BOX(&fastwhiten::cuda::eigh));
}
