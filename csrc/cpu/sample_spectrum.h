// The spectrum of one group on the sample side, and the weights of its rows.
#pragma once

#include <cmath>

#include "workspace.h"

namespace fastwhiten::cpu {

// t [M] = sqrt((1 - rho) d + e), d clamped at 0, e = eps + rho sum(d) / D.
template <class T>
void sample_spectrum(int64_t M, int64_t D, const T* eigenvalues, T rho, T eps, T* t) {
  T sum = 0;
  for (int64_t i = 0; i < M; ++i) {
    t[i] = eigenvalues[i] < 0 ? T(0) : eigenvalues[i];  // a Gram matrix has none; NaN stays NaN
    sum += t[i];
  }
  const T e = eps + rho * sum / static_cast<T>(D);
  for (int64_t i = 0; i < M; ++i) t[i] = std::sqrt((1 - rho) * t[i] + e);
}

// root [M] = sqrt(p_n).
template <class T>
void root_weights(int64_t M, const T* p, T* root) {
  const T uniform = 1 / std::sqrt(static_cast<T>(M));
  for (int64_t n = 0; n < M; ++n) root[n] = p == nullptr ? uniform : std::sqrt(p[n]);
}

// Flops of a product [M, M] [M, D], or [M, D] [D, M].
inline double sample_flops(int64_t M, int64_t D) {
  return 2.0 * static_cast<double>(M) * static_cast<double>(M) * static_cast<double>(D);
}

}  // namespace fastwhiten::cpu
