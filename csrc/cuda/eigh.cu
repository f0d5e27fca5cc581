#include "../ops/eigh.h"
#include "device.h"
#include "eigh.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
void Device::eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) const {
  const auto start = [&](auto* kernel, unsigned grid, unsigned threads, int64_t bytes,
                         const auto& problem) {
    launch(kernel, grid, static_cast<int>(threads), bytes, problem);
  };
  const bool small = D <= kOneSidedUpTo;
  const EighProblem<T> problem{
      B, small ? static_cast<int>(D) : 0, a, values, vectors, nullptr, nullptr, false};
  if (!small || !launch_eigh(problem, shared_limit(), start)) {
    library_eigh(B, D, a, values, vectors);
  }
}

template void Device::eigh(int64_t, int64_t, const float*, float*, float*) const;
template void Device::eigh(int64_t, int64_t, const double*, double*, double*) const;

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
