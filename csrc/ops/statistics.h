// fastwhiten::statistics: weighted mean and covariance of every group of channels.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// x [M, C] or [N, C, L]; row_weight [M] T, non-negative with sum 1, or None for 1/M.
Layout check_statistics(const Tensor& x, const OptionalTensor& row_weight, int64_t groups,
                        bool double_precision);

}  // namespace fastwhiten
