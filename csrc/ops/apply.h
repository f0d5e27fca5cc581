// fastwhiten::apply: centre, whiten, and scale: an affine map of every row.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x [M, C] or [N, C, L]; mean [C] T, matrix [G, D, D] T; gamma and beta [C] T or None.
Layout check_apply(const Tensor& x, const Tensor& mean, const Tensor& matrix,
                   const OptionalTensor& gamma, const OptionalTensor& beta);

}  // namespace fastwhiten
