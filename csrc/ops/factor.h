// fastwhiten::factor: from a covariance to its whitening matrix.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// covariance and running_covariance [G, D, D] T; rho [G] T or None; batch_weight in (0, 1]; eps >=
// 0; start as in eigh.h.
void check_factor(const Tensor& covariance, const OptionalTensor& running_covariance,
                  const OptionalTensor& rho, int64_t kind, const OptionalTensor& start);

}  // namespace fastwhiten
