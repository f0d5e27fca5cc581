// The arguments of the stages and of whole passes, and when eigenvalues are tied. Free
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
struct Statistics {
  Layout s;
  const In* x;
  const T* p;
  T *mean, *covariance;
  // Wanted too, by CUDA's whole pass: blended [G, D, D], batch_weight covariance + (1 -
  // batch_weight) running.
  const T* running = nullptr;
  double batch_weight = 1;
  T* blended = nullptr;
};

template <class In, class T>
struct Intensity {
  Layout s;
  const In* x;
  const T *mean, *covariance, *running, *p;
  double batch_weight;
  int64_t method;  // 1 fixed (value), 2 oas, 3 ledoit-wolf
  double value;
  T* rho;
};

template <class T>
struct Factor {
  int64_t G, D;
  const T *covariance, *running, *rho;
  double batch_weight, eps;
  int64_t kind;
  const T* start;
  T *eigenvalues, *basis, *matrix;
};

template <class In, class T>
struct Apply {
  Layout s;
  const In* x;
  const T *mean, *matrix, *gamma, *beta;
  In* y;
};

template <class In, class T>
struct BackwardReduce {
  Layout s;
  const In *x, *grad;
  const T* mean;
  T *grad_sum, *cross;
};

template <class T>
struct BackwardMatrix {
  int64_t G, D;
  const T *cross, *eigenvalues, *basis, *matrix, *gamma, *rho;
  double batch_weight;
  int64_t kind;
  T *inner, *grad_gamma;
};

template <class In, class T>
struct BackwardApply {
  Layout s;
  const In *x, *grad;
  const T *mean, *grad_sum, *matrix, *inner, *gamma, *p;
  In* dx;
};

template <class In, class T>
struct SampleStatistics {
  Layout s;
  const In* x;
  const T* p;
  T *mean, *scaled, *gram;
};

template <class Out, class T>
struct SampleApply {
  Layout s;
  const T *scaled, *eigenvalues, *eigenvectors, *p, *rho;
  double eps;
  Out* y;
  T* projected;
};

template <class In, class T>
struct SampleBackward {
  Layout s;
  const In* grad;
  const T *projected, *eigenvalues, *eigenvectors, *p, *rho;
  double eps;
  In* dx;
};

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
