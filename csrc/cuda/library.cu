// The library's solvers for large D: eigensystems by cuSOLVER's batched solver (cusolver.h), or by
// torch.linalg.eigh where torch brings a cuSOLVER that is too old; that waits for the device (it
// looks at its error codes). Cholesky factors by torch's cholesky_ex and triangular solve, which do
// not.
#include <dlfcn.h>

#include <string>

#include "../common/library.h"
#include "cusolver.h"
#include "device.h"
#include "eigh.cuh"
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

// Of what torch is linked with. It loads its linear algebra, a library beside its own, when that is
// used first; some builds have both in one.
Cusolver& cusolver() {
  static Cusolver& only = []() -> Cusolver& {
    Dl_info torch{};
    const auto* known = reinterpret_cast<const void*>(&aoti_torch_get_current_cuda_stream);
    STD_TORCH_CHECK(dladdr(known, &torch) != 0, "eigh: expected torch to be a shared library");
    const std::string path = torch.dli_fname, folder = path.substr(0, path.rfind('/') + 1);
    void* library = dlopen((folder + "libtorch_cuda_linalg.so").c_str(), RTLD_NOW);
    if (library == nullptr) library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return *new Cusolver(library);  // for good: threads may outlive what is destroyed at exit
  }();
  return only;
}

// For fastwhiten.info.
std::string library_eigensolver() {
  const Cusolver& solver = cusolver();
  return "D > " + std::to_string(kBlockUpTo<float>) +
         " (float64: " + std::to_string(kBlockUpTo<double>) + "): " +
         (solver.usable() ? "cusolverDnXsyevBatched of " + solver.version()
                          : "torch.linalg.eigh, which waits for the device: " + solver.missing());
}

}  // namespace

template <class T>
void Device::library_eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) const {
  if (cusolver().usable()) return run_batched_eigh(*this, cusolver(), B, D, a, values, vectors);
  Tensor guarded = empty({B, D, D}, scalar_type_of<T>);
  auto finite = allocate<int32_t>(B);
  run_guard(*this, B, D, a, mutable_data<T>(guarded), finite.get());
  StableIValue stack[2] = {from(guarded), from(std::string("L"))};
  call("aten::linalg_eigh", stack);
  const Tensor found_values = to<Tensor>(stack[0]), found = to<Tensor>(stack[1]);
  STD_TORCH_CHECK(found_values.is_contiguous(), "eigh: unexpected strides");
  run_normalize(*this, NormalizeArguments<T>{B, D, found.stride(0), found.stride(1),
                                             found.stride(2), data<T>(found), data<T>(found_values),
                                             finite.get(), nullptr, vectors, values});
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
  const Tensor inverse = to<Tensor>(solve[0]);
  run_flip_or_nan(*this,
                  FlipArguments<T>{G, D, inverse.stride(0), inverse.stride(1), inverse.stride(2),
                                   data<T>(inverse), data<int32_t>(info), matrix});
}

#define FASTWHITEN_INSTANTIATE(T)                                               \
  template void Device::library_eigh(int64_t, int64_t, const T*, T*, T*) const; \
  template void Device::cholesky(int64_t, int64_t, const T*, const T*, double, T*) const;
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten

FASTWHITEN_LIBRARY_FRAGMENT(m) { m.def("library_eigensolver() -> str"); }

FASTWHITEN_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("library_eigensolver", TORCH_BOX(&fastwhiten::cuda::library_eigensolver));
}
