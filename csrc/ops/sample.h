// fastwhiten::sample_statistics, sample_apply, sample_backward: the dual form, for M < D. zca, rows
// only.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x [M, C]; row_weight [M] T, strictly positive with sum 1, or None for 1/M.
Layout check_sample_statistics(const Tensor& x, const OptionalTensor& row_weight, int64_t groups,
                               bool double_precision);

// scaled [M, C] T; eigenvalues [G, M] T and eigenvectors [G, M, M] T of the Gram matrices.
Layout check_sample_apply(const Tensor& scaled, const Tensor& eigenvalues,
                          const Tensor& eigenvectors, const OptionalTensor& row_weight,
                          const OptionalTensor& rho, ScalarType out_dtype);

// grad [M, C]; projected [G, M, D] T.
Layout check_sample_backward(const Tensor& grad, const Tensor& projected, const Tensor& eigenvalues,
                             const Tensor& eigenvectors, const OptionalTensor& row_weight,
                             const OptionalTensor& rho);

}  // namespace fastwhiten
