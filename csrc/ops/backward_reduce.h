// fastwhiten::backward_reduce: the sums over rows that the backward pass needs.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x and grad [M, C] or [N, C, L] of one dtype; mean [C] T.
Layout check_backward_reduce(const Tensor& x, const Tensor& grad, const Tensor& mean,
                             int64_t groups);

}  // namespace fastwhiten
