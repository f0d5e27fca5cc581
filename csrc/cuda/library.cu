// The library's solvers through PyTorch's dispatcher: eigenvalues and Cholesky factors for large D.
// linalg_eigh waits for the device (it looks at its error codes); cholesky_ex does not.
#include <string>

#include "device.h"
#include "library.cuh"

namespace fastwhiten {
namespace cuda {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

template <size_t kSlots>
void call(const char* op, StableIValue (&stack)[kSlots]) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
}

}  // namespace

template <class T>
void Device::library_eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) const {
  Tensor guarded = empty({B, D, D}, scalar_type_of<T>);
  auto finite = allocate<int32_t>(B);
  run_guard(*this, B, D, a, mutable_data<T>(guarded), finite.get());
  StableIValue stack[2] = {from(guarded), from(std::string("L"))};
  call("aten::linalg_eigh", stack);
  const Tensor found_values = to<Tensor>(stack[0]), found = to<Tensor>(stack[1]);
  STD_TORCH_CHECK(found_values.is_contiguous(), "eigh: unexpected strides");
  run_normalize(*this, NormalizeArguments<T>{B, D, found.stride(0), found.stride(1),
                                             found.stride(2), data<T>(found), data<T>(found_values),
                                             finite.get(), vectors, values});
}

template <class T>
void Device::cholesky(int64_t G, int64_t D, const T* blended, const T* rho, double eps,
                      T* matrix) const {
  Tensor shifted = empty({G, D, D}, scalar_type_of<T>);
  Tensor identity = empty({G, D, D}, scalar_type_of<T>);
  run_shift(*this, ShiftArguments<T>{G, D, blended, rho, static_cast<T>(eps),
                                     mutable_data<T>(shifted), mutable_data<T>(identity)});
  StableIValue factor[3] = {from(shifted), from(false), from(false)};  // upper, check_errors
  call("aten::linalg_cholesky_ex", factor);
  const Tensor lower = to<Tensor>(factor[0]), info = to<Tensor>(factor[1]);
  // upper, left, unitriangular
  StableIValue solve[5] = {from(lower), from(identity), from(false), from(true), from(false)};
  call("aten::linalg_solve_triangular", solve);
  const Tensor solved = to<Tensor>(solve[0]);
  StableIValue copy[2] = {from(solved), from(std::optional<int32_t>())};
  call("aten::contiguous", copy);
  const Tensor inverse = to<Tensor>(copy[0]);
  run_flip_or_nan(*this, G, D, data<T>(inverse), data<int32_t>(info), matrix);
}

#define FASTWHITEN_INSTANTIATE(T)                                               \
  template void Device::library_eigh(int64_t, int64_t, const T*, T*, T*) const; \
  template void Device::cholesky(int64_t, int64_t, const T*, const T*, double, T*) const;
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
