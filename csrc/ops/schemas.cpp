// The schemas of namespace fastwhiten. They are the module fastwhiten_cpu's alone: fastwhiten_cuda
// adds kernels to them, and PyTorch takes kernels before their schema as well as after it.
#include "../common/stable.h"

STABLE_TORCH_LIBRARY(fastwhiten, m) {
  m.def("linear_algebra_provider() -> str");
  m.def("cpu_capability() -> str");

  // A whole pass: its stages in one call.
  m.def(
      "whiten_forward(Tensor x, Tensor? gamma, Tensor? beta, Tensor? row_weight,"
      " Tensor? running_covariance, int groups, float batch_weight, float eps, int kind,"
      " bool double_precision, int shrink_method, float shrink_value, Tensor? start=None)"
      " -> (Tensor y, Tensor mean, Tensor covariance, Tensor eigenvalues, Tensor basis,"
      " Tensor matrix, Tensor rho)");
  m.def(
      "whiten_backward(Tensor grad, Tensor x, Tensor mean, Tensor eigenvalues, Tensor basis,"
      " Tensor matrix, Tensor? gamma, Tensor? rho, Tensor? row_weight, float batch_weight,"
      " int kind) -> (Tensor dx, Tensor grad_gamma, Tensor grad_sum)");

  // The stages of a forward pass.
  m.def(
      "statistics(Tensor x, Tensor? row_weight, int groups, bool double_precision)"
      " -> (Tensor mean, Tensor covariance)");
  m.def(
      "intensity(Tensor x, Tensor mean, Tensor covariance, Tensor? running_covariance,"
      " Tensor? row_weight, float batch_weight, int method, float value) -> Tensor");
  m.def("eigh(Tensor a, Tensor? start=None) -> (Tensor eigenvalues, Tensor eigenvectors)");
  m.def("eigh_sweeps(Tensor a, Tensor? start=None) -> Tensor");
  m.def(
      "factor(Tensor covariance, Tensor? running_covariance, Tensor? rho, float batch_weight,"
      " float eps, int kind, Tensor? start=None)"
      " -> (Tensor eigenvalues, Tensor basis, Tensor matrix)");
  m.def("apply(Tensor x, Tensor mean, Tensor matrix, Tensor? gamma, Tensor? beta) -> Tensor");

  // Those of a backward pass.
  m.def(
      "backward_reduce(Tensor x, Tensor grad, Tensor mean, int groups)"
      " -> (Tensor grad_sum, Tensor cross)");
  m.def(
      "backward_matrix(Tensor cross, Tensor eigenvalues, Tensor basis, Tensor matrix,"
      " Tensor? gamma, Tensor? rho, float batch_weight, int kind)"
      " -> (Tensor inner, Tensor grad_gamma)");
  m.def(
      "backward_apply(Tensor x, Tensor grad, Tensor mean, Tensor grad_sum, Tensor matrix,"
      " Tensor inner, Tensor? gamma, Tensor? row_weight) -> Tensor");

  // Those of the sample side.
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
