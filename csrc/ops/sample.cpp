#include "sample.h"

namespace fastwhiten {
namespace {

Layout check_rows(const char* op, const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 2, op, ": expected rows [M, C], got ", x.dim(), " dimensions");
  return check_layout(op, x, groups);
}

void check_gram(const char* op, const Layout& s, ScalarType dtype, const Tensor& eigenvalues,
                const Tensor& eigenvectors, const OptionalTensor& row_weight,
                const OptionalTensor& rho) {
  check_sizes(op, "eigenvalues", eigenvalues, dtype, {s.groups, s.samples});
  check_sizes(op, "eigenvectors", eigenvectors, dtype, {s.groups, s.samples, s.samples});
  check_sizes(op, "row_weight", row_weight, dtype, {s.samples});
  check_sizes(op, "rho", rho, dtype, {s.groups});
}

}  // namespace

Layout check_sample_statistics(const Tensor& x, const OptionalTensor& row_weight, int64_t groups,
                               bool double_precision) {
  const char* op = "sample_statistics";
  const Layout s = check_rows(op, x, groups);
  check_sizes(op, "row_weight", row_weight, accumulation_type(x.scalar_type(), double_precision),
              {s.samples});
  return s;
}

Layout check_sample_apply(const Tensor& scaled, const Tensor& eigenvalues,
                          const Tensor& eigenvectors, const OptionalTensor& row_weight,
                          const OptionalTensor& rho, ScalarType out_dtype) {
  const char* op = "sample_apply";
  STD_TORCH_CHECK(eigenvalues.dim() == 2, op, ": expected eigenvalues of shape [G, M]");
  const Layout s = check_rows(op, scaled, eigenvalues.size(0));
  check_floating(op, "out_dtype", out_dtype);
  check_gram(op, s, check_accumulation(op, scaled), eigenvalues, eigenvectors, row_weight, rho);
  return s;
}

Layout check_sample_backward(const Tensor& grad, const Tensor& projected, const Tensor& eigenvalues,
                             const Tensor& eigenvectors, const OptionalTensor& row_weight,
                             const OptionalTensor& rho) {
  const char* op = "sample_backward";
  STD_TORCH_CHECK(projected.dim() == 3, op, ": expected projected of shape [G, M, D]");
  const Layout s = check_rows(op, grad, projected.size(0));
  const ScalarType dtype = check_accumulation(op, projected);
  check_sizes(op, "projected", projected, dtype, {s.groups, s.samples, s.width});
  check_gram(op, s, dtype, eigenvalues, eigenvectors, row_weight, rho);
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "sample_statistics(Tensor x, Tensor? row_weight, int groups, bool double_precision)"
      " -> (Tensor mean, Tensor scaled, Tensor gram)");
  m.def(
      "sample_apply(Tensor scaled, Tensor eigenvalues, Tensor eigenvectors, Tensor? row_weight,"
      " Tensor? rho, float eps, ScalarType out_dtype) -> (Tensor y, Tensor projected)");
  m.def(
      "sample_backward(Tensor grad, Tensor projected, Tensor eigenvalues, Tensor eigenvectors,"
      " Tensor? row_weight, Tensor? rho, float eps) -> Tensor");
}
#endif
