// fastwhiten::backward_apply: the gradient of every row.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x and grad [M, C] or [N, C, L] of one dtype; mean, grad_sum and gamma [C] T; matrix and inner
// [G, D, D] T; row_weight [M] T or None for 1/M.
Layout check_backward_apply(const Tensor& x, const Tensor& grad, const Tensor& mean,
                            const Tensor& grad_sum, const Tensor& matrix, const Tensor& inner,
                            const OptionalTensor& gamma, const OptionalTensor& row_weight);

}  // namespace fastwhiten
