#include "backward_apply.h"

namespace fastwhiten {

Layout check_backward_apply(const Tensor& x, const Tensor& grad, const Tensor& mean,
                            const Tensor& grad_sum, const Tensor& matrix, const Tensor& inner,
                            const OptionalTensor& gamma, const OptionalTensor& row_weight) {
  const char* op = "backward_apply";
  STD_TORCH_CHECK(matrix.dim() == 3, op, ": expected matrix of shape [G, D, D]");
  const Layout s = check_layout(op, x, matrix.size(0));
  const ScalarType dtype = check_accumulation(op, mean);
  check_same(op, "grad", grad, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "grad_sum", grad_sum, dtype, {s.channels});
  check_sizes(op, "matrix", matrix, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "inner", inner, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "backward_apply(Tensor x, Tensor grad, Tensor mean, Tensor grad_sum, Tensor matrix,"
      " Tensor inner, Tensor? gamma, Tensor? row_weight) -> Tensor");
}
#endif
