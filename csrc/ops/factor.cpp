#include "factor.h"

namespace fastwhiten {

void check_factor(const Tensor& covariance, const OptionalTensor& running_covariance,
                  const OptionalTensor& rho, int64_t kind, const OptionalTensor& start) {
  const ScalarType dtype = check_accumulation("factor", covariance);
  STD_TORCH_CHECK(covariance.dim() == 3, "factor: expected covariance of shape [G, D, D]");
  const int64_t G = covariance.size(0), D = covariance.size(1);
  check_sizes("factor", "covariance", covariance, dtype, {G, D, D});
  check_sizes("factor", "running_covariance", running_covariance, dtype, {G, D, D});
  check_sizes("factor", "rho", rho, dtype, {G});
  check_sizes("factor", "start", start, dtype, {G, D, D});
  check_kind("factor", kind);
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "factor(Tensor covariance, Tensor? running_covariance, Tensor? rho, float batch_weight,"
      " float eps, int kind, Tensor? start=None)"
      " -> (Tensor eigenvalues, Tensor basis, Tensor matrix)");
}
#endif
