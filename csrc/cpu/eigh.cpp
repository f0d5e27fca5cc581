// a = U diag(l) U^T for every matrix: l ascending, eigenvectors as columns of U, signs made unique.
//
// Up to D = 128 or so our own solver (tridiagonal_impl.h, ql_impl.h; up to 32 in float64), above it
// LAPACK's syevd.
// Matrices go side by side; from D = 192 or so one matrix takes all threads.
// A non-finite matrix gives NaN for itself alone. Bytes: a once, U twice (LAPACK's rows are
// transposed). Both solvers are direct: a start would save them nothing and is ignored, and there
// are no sweeps to count (-1).
#include "../ops/eigh.h"

#include <algorithm>

#include "parallel.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

template <class T>
void run(int64_t B, int64_t D, const T* a, T* values, T* vectors) {
  for_groups(B, eigen_flops<T>(D), [&](int64_t b) {
    Buffer<T> work(D * D);
    const T* from = a + b * D * D;  // [D, D]
    for (int64_t i = 0; i < D; ++i) std::copy_n(from + i * D, i + 1, work.get() + i * D);
    mirror(D, work.get());
    symmetric_eigen(D, work.get(), values + b * D);
    transpose(D, work.get(), vectors + b * D * D);
  });
}

std::tuple<Tensor, Tensor> eigh(const Tensor& a, const OptionalTensor& start) {
  check_eigh(a, start);
  const int64_t B = a.size(0), D = a.size(1);
  Tensor values = empty({B, D}, a.scalar_type());
  Tensor vectors = empty({B, D, D}, a.scalar_type());
  if (a.numel() == 0) return {values, vectors};
  dispatch_accumulation(a.scalar_type(), [&](auto accumulation) {
    using T = typename decltype(accumulation)::type;
    run(B, D, data<T>(a), mutable_data<T>(values), mutable_data<T>(vectors));
  });
  return {values, vectors};
}

Tensor eigh_sweeps(const Tensor& a, const OptionalTensor& start) {
  check_eigh(a, start);
  Tensor sweeps = empty({a.size(0)}, ScalarType::Int);
  std::fill_n(mutable_data<int32_t>(sweeps), a.size(0), int32_t{-1});
  return sweeps;
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("eigh", TORCH_BOX(&fastwhiten::cpu::eigh));
  m.impl("eigh_sweeps", TORCH_BOX(&fastwhiten::cpu::eigh_sweeps));
}
