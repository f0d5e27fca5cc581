// fastwhiten::intensity: how much of a covariance is replaced by a multiple of the identity.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x [M, C] or [N, C, L]; mean [C], covariance and running_covariance [G, D, D], row_weight [M], T;
// method 1 (fixed: the value), 2 (oas) or 3 (ledoit-wolf).
Layout check_intensity(const Tensor& x, const Tensor& mean, const Tensor& covariance,
                       const OptionalTensor& running_covariance, const OptionalTensor& row_weight,
                       int64_t method);

}  // namespace fastwhiten
