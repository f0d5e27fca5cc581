#include "backward_matrix.h"

namespace fastwhiten {

void check_backward_matrix(const Tensor& cross, const Tensor& eigenvalues, const Tensor& basis,
                           const Tensor& matrix, const OptionalTensor& gamma,
                           const OptionalTensor& rho, int64_t kind) {
  const char* op = "backward_matrix";
  const ScalarType dtype = check_accumulation(op, cross);
  STD_TORCH_CHECK(cross.dim() == 3, op, ": expected cross of shape [G, D, D]");
  const int64_t G = cross.size(0), D = cross.size(1);
  check_kind(op, kind);
  check_sizes(op, "cross", cross, dtype, {G, D, D});
  check_sizes(op, "matrix", matrix, dtype, {G, D, D});
  if (kind != kCholesky) {
    check_sizes(op, "eigenvalues", eigenvalues, dtype, {G, D});
    check_sizes(op, "basis", basis, dtype, {G, D, D});
  }
  check_sizes(op, "gamma", gamma, dtype, {G * D});
  check_sizes(op, "rho", rho, dtype, {G});
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "backward_matrix(Tensor cross, Tensor eigenvalues, Tensor basis, Tensor matrix, Tensor? "
      "gamma,"
      " Tensor? rho, float batch_weight, int kind) -> (Tensor inner, Tensor grad_gamma)");
}
#endif
