#include "../ops/eigh.h"
#include "device.h"
#include "eigh.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
void Device::eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start,
                  int32_t* sweeps) const {
  run_eigh(*this, EighProblem<T>{B, D, a, values, vectors, start, sweeps});
}

template void Device::eigh(int64_t, int64_t, const float*, float*, float*, const float*,
                           int32_t*) const;
template void Device::eigh(int64_t, int64_t, const double*, double*, double*, const double*,
                           int32_t*) const;

namespace {

std::tuple<Tensor, Tensor, Tensor> solve(const char* op, const Tensor& a,
                                         const OptionalTensor& start) {
  check_eigh(a, start);
  check_devices(op, a, start);
  Device device(a);
  const int64_t B = a.size(0), D = a.size(1);
  Tensor values = device.empty({B, D}, a.scalar_type());
  Tensor vectors = device.empty({B, D, D}, a.scalar_type());
  Tensor sweeps = device.empty({B}, ScalarType::Int);
  if (a.numel() == 0) return {values, vectors, sweeps};
  dispatch_accumulation(a.scalar_type(), [&](auto accumulation) {
    using T = typename decltype(accumulation)::type;
    device.eigh(B, D, data<T>(a), mutable_data<T>(values), mutable_data<T>(vectors), data<T>(start),
                mutable_data<int32_t>(sweeps));
  });
  return {values, vectors, sweeps};
}

std::tuple<Tensor, Tensor> eigh(const Tensor& a, const OptionalTensor& start) {
  auto [values, vectors, sweeps] = solve("eigh", a, start);
  return {values, vectors};
}

Tensor eigh_sweeps(const Tensor& a, const OptionalTensor& start) {
  return std::get<2>(solve("eigh_sweeps", a, start));
}

}  // namespace
}  // namespace cuda
}  // namespace fastwhiten

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  m.impl("eigh", TORCH_BOX(&fastwhiten::cuda::eigh));
  m.impl("eigh_sweeps", TORCH_BOX(&fastwhiten::cuda::eigh_sweeps));
}
