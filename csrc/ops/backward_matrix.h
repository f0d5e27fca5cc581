// fastwhiten::backward_matrix: the D x D part of the backward pass.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// cross, basis and matrix [G, D, D] T, eigenvalues [G, D] T (basis and eigenvalues [0] for
// cholesky); gamma [G * D] T or None; rho [G] T or None.
void check_backward_matrix(const Tensor& cross, const Tensor& eigenvalues, const Tensor& basis,
                           const Tensor& matrix, const OptionalTensor& gamma,
                           const OptionalTensor& rho, int64_t kind);

}  // namespace fastwhiten
