#include "apply.h"

namespace fastwhiten {

Layout check_apply(const Tensor& x, const Tensor& mean, const Tensor& matrix,
                   const OptionalTensor& gamma, const OptionalTensor& beta) {
  STD_TORCH_CHECK(matrix.dim() == 3, "apply: expected matrix of shape [G, D, D]");
  const Layout s = check_layout("apply", x, matrix.size(0));
  const ScalarType dtype = check_accumulation("apply", mean);
  check_sizes("apply", "mean", mean, dtype, {s.channels});
  check_sizes("apply", "matrix", matrix, dtype, {s.groups, s.width, s.width});
  check_sizes("apply", "gamma", gamma, dtype, {s.channels});
  check_sizes("apply", "beta", beta, dtype, {s.channels});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def("apply(Tensor x, Tensor mean, Tensor matrix, Tensor? gamma, Tensor? beta) -> Tensor");
}
#endif
