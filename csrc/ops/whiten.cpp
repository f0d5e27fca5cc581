#include "whiten.h"

namespace fastwhiten {

Layout check_whiten_forward(const Tensor& x, const OptionalTensor& gamma,
                            const OptionalTensor& beta, const OptionalTensor& row_weight,
                            const OptionalTensor& running_covariance, int64_t groups, int64_t kind,
                            bool double_precision, int64_t shrink_method,
                            const OptionalTensor& start) {
  const char* op = "whiten_forward";
  const Layout s = check_layout(op, x, groups);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  check_kind(op, kind);
  check_method(op, shrink_method, kNoShrinkage);
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "beta", beta, dtype, {s.channels});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  check_sizes(op, "running_covariance", running_covariance, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "start", start, dtype, {s.groups, s.width, s.width});
  return s;
}

Layout check_whiten_backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                             const Tensor& eigenvalues, const Tensor& basis, const Tensor& matrix,
                             const OptionalTensor& gamma, const OptionalTensor& rho,
                             const OptionalTensor& row_weight, int64_t kind) {
  const char* op = "whiten_backward";
  STD_TORCH_CHECK(matrix.dim() == 3, op, ": expected matrix of shape [G, D, D]");
  const Layout s = check_layout(op, x, matrix.size(0));
  const ScalarType dtype = check_accumulation(op, mean);
  check_kind(op, kind);
  check_same(op, "grad", grad, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "matrix", matrix, dtype, {s.groups, s.width, s.width});
  if (kind != kCholesky) {
    check_sizes(op, "eigenvalues", eigenvalues, dtype, {s.groups, s.width});
    check_sizes(op, "basis", basis, dtype, {s.groups, s.width, s.width});
  }
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "rho", rho, dtype, {s.groups});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "whiten_forward(Tensor x, Tensor? gamma, Tensor? beta, Tensor? row_weight,"
      " Tensor? running_covariance, int groups, float batch_weight, float eps, int kind,"
      " bool double_precision, int shrink_method, float shrink_value, Tensor? start=None)"
      " -> (Tensor y, Tensor mean, Tensor covariance, Tensor eigenvalues, Tensor basis, Tensor "
      "matrix, Tensor rho)");
  m.def(
      "whiten_backward(Tensor grad, Tensor x, Tensor mean, Tensor eigenvalues, Tensor basis,"
      " Tensor matrix, Tensor? gamma, Tensor? rho, Tensor? row_weight, float batch_weight,"
      " int kind) -> (Tensor dx, Tensor grad_gamma, Tensor grad_sum)");
}
#endif
