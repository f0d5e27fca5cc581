// The stages as functions of pointers: what an op calls for all groups, and whiten.cpp for each.
// Shapes as in the stage's own file; row_weight, running, rho, gamma and beta may be null.
#pragma once

#include <cstdint>

#include "../common/checks.h"

namespace fastwhiten::cpu {

template <class In, class T>
void run_statistics(const Layout& s, const In* x, const T* row_weight, T* mean, T* covariance);

// rho [G] of the blended covariances; method as in ops/intensity.h.
template <class In, class T>
void run_intensity(const Layout& s, const In* x, const T* mean, const T* covariance,
                   const T* running, const T* p, double batch_weight, int64_t method, double value,
                   T* rho);

// values and basis are not written for kind = cholesky.
template <class T>
void run_factor(int64_t G, int64_t D, const T* covariance, const T* running, const T* rho,
                double batch_weight, double eps, int64_t kind, T* values, T* basis, T* matrix);

template <class In, class T>
void run_apply(const Layout& s, const In* x, const T* mean, const T* matrix, const T* gamma,
               const T* beta, In* y);

template <class In, class T>
void run_backward_reduce(const Layout& s, const In* x, const In* grad, const T* mean, T* grad_sum,
                         T* cross);

template <class T>
void run_backward_matrix(int64_t G, int64_t D, const T* cross, const T* eigenvalues, const T* basis,
                         const T* matrix, const T* gamma, const T* rho, double batch_weight,
                         int64_t kind, T* inner, T* grad_gamma);

template <class In, class T>
void run_backward_apply(const Layout& s, const In* x, const In* grad, const T* mean,
                        const T* grad_sum, const T* matrix, const T* inner, const T* gamma,
                        const T* row_weight, In* dx);

}  // namespace fastwhiten::cpu
