// fastwhiten::eigh: eigendecomposition of symmetric matrices.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// a [B, D, D] T, of which the lower triangle is read.
void check_eigh(const Tensor& a);

}  // namespace fastwhiten
