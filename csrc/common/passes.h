// What both devices' stages share: the arguments of a whole pass, when eigenvalues are tied. Free
// of torch, as layout.h. Shapes as in ops/ops.h; p is the row_weight. gamma, beta, p, running,
// start and, of a backward, rho may be null.
#pragma once

#include <limits>

#include "layout.h"

namespace fastwhiten {

// The relative gap under which two eigenvalues are tied: an eigenvalue is known to about D eps
// times the largest. backends/reference.py has the same.
template <class T>
T tie_tolerance(int64_t D) {
  return 64 * static_cast<T>(D) * std::numeric_limits<T>::epsilon();
}

template <class In, class T>
struct WhitenForward {
  Layout s;
  const In* x;
  const T *gamma, *beta, *p, *running;
  double batch_weight, eps;
  int64_t kind, method;  // method: 0 no shrinkage, else as run_intensity
  double value;
  const T* start;  // [G, D, D] where the eigensolver begins
  In* y;
  T *mean, *covariance, *eigenvalues, *basis, *matrix, *rho;
};

template <class In, class T>
struct WhitenBackward {
  Layout s;
  const In *grad, *x;
  const T *mean, *eigenvalues, *basis, *matrix, *gamma, *rho, *p;
  double batch_weight;
  int64_t kind;
  In* dx;
  T *grad_gamma, *grad_sum;
};

}  // namespace fastwhiten
