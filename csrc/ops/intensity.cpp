#include "intensity.h"

namespace fastwhiten {

Layout check_intensity(const Tensor& x, const Tensor& mean, const Tensor& covariance,
                       const OptionalTensor& running_covariance, const OptionalTensor& row_weight,
                       int64_t method) {
  const char* op = "intensity";
  STD_TORCH_CHECK(covariance.dim() == 3, op, ": expected covariance of shape [G, D, D]");
  const Layout s = check_layout(op, x, covariance.size(0));
  const ScalarType dtype = check_accumulation(op, mean);
  check_method(op, method, kFixed);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "covariance", covariance, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "running_covariance", running_covariance, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "intensity(Tensor x, Tensor mean, Tensor covariance, Tensor? running_covariance,"
      " Tensor? row_weight, float batch_weight, int method, float value) -> Tensor");
}
#endif
