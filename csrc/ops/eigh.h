// fastwhiten::eigh: eigendecomposition of symmetric matrices; eigh_sweeps: what it took.
#pragma once

#include "../common/checks.h"

namespace fastwhiten {

// a [B, D, D] T, of which the lower triangle is read. start [B, D, D] T or None: orthogonal
// matrices near the eigenvectors, where an iterative solver begins. Others ignore it, and so does
// an iterative one for a matrix that is not finite or not orthogonal.
void check_eigh(const Tensor& a, const OptionalTensor& start);

}  // namespace fastwhiten
