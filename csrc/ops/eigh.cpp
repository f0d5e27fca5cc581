#include "eigh.h"

namespace fastwhiten {

void check_eigh(const Tensor& a, const OptionalTensor& start) {
  const ScalarType dtype = check_accumulation("eigh", a);
  STD_TORCH_CHECK(a.dim() == 3, "eigh: expected a of shape [B, D, D]");
  check_sizes("eigh", "a", a, dtype, {a.size(0), a.size(1), a.size(1)});
  check_sizes("eigh", "start", start, dtype, {a.size(0), a.size(1), a.size(1)});
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def("eigh(Tensor a, Tensor? start=None) -> (Tensor eigenvalues, Tensor eigenvectors)");
  m.def("eigh_sweeps(Tensor a, Tensor? start=None) -> Tensor");
}
#endif
