// fastwhiten::whiten_forward and whiten_backward: the stages of one pass in one call.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x [M, C] or [N, C, L]; gamma, beta [C], row_weight [M], running_covariance and start (as in
// eigh.h) [G, D, D], all T or None.
Layout check_whiten_forward(const Tensor& x, const OptionalTensor& gamma,
                            const OptionalTensor& beta, const OptionalTensor& row_weight,
                            const OptionalTensor& running_covariance, int64_t groups, int64_t kind,
                            bool double_precision, int64_t shrink_method,
                            const OptionalTensor& start);

// grad like x; mean [C], eigenvalues [G, D], basis and matrix [G, D, D], rho [G], all T.
Layout check_whiten_backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                             const Tensor& eigenvalues, const Tensor& basis, const Tensor& matrix,
                             const OptionalTensor& gamma, const OptionalTensor& rho,
                             const OptionalTensor& row_weight, int64_t kind);

}  // namespace fastwhiten
