// The stages as functions of pointers: what an op calls for all groups, and whiten.cpp for each.
// Shapes as in the stage's own file; p, running, rho, gamma, beta and start may be null. ops.h
// finds them by their Device, which has nothing else to say to them.
#pragma once

#include <cstdint>

#include "../common/passes.h"
#include "device.h"

namespace fastwhiten::cpu {

template <class In, class T>
void run_statistics(const Device&, const Layout& s, const In* x, const T* p, T* mean,
                    T* covariance);

// rho [G] of the blended covariances; method as in ops/ops.h.
template <class In, class T>
void run_intensity(const Device&, const Layout& s, const In* x, const T* mean, const T* covariance,
                   const T* running, const T* p, double batch_weight, int64_t method, double value,
                   T* rho);

// values and basis are not written for kind = cholesky.
template <class T>
void run_factor(const Device&, int64_t G, int64_t D, const T* covariance, const T* running,
                const T* rho, double batch_weight, double eps, int64_t kind, const T* start,
                T* values, T* basis, T* matrix);

template <class In, class T>
void run_apply(const Device&, const Layout& s, const In* x, const T* mean, const T* matrix,
               const T* gamma, const T* beta, In* y);

template <class In, class T>
void run_backward_reduce(const Device&, const Layout& s, const In* x, const In* grad, const T* mean,
                         T* grad_sum, T* cross);

template <class T>
void run_backward_matrix(const Device&, int64_t G, int64_t D, const T* cross, const T* eigenvalues,
                         const T* basis, const T* matrix, const T* gamma, const T* rho,
                         double batch_weight, int64_t kind, T* inner, T* grad_gamma);

template <class In, class T>
void run_backward_apply(const Device&, const Layout& s, const In* x, const In* grad, const T* mean,
                        const T* grad_sum, const T* matrix, const T* inner, const T* gamma,
                        const T* p, In* dx);

template <class In, class T>
void run_whiten_forward(const Device&, const WhitenForward<In, T>& in);

template <class In, class T>
void run_whiten_backward(const Device&, const WhitenBackward<In, T>& in);

template <class In, class T>
void run_sample_statistics(const Device&, const Layout& s, const In* x, const T* p, T* mean,
                           T* scaled, T* gram);

template <class Out, class T>
void run_sample_apply(const Device&, const Layout& s, const T* scaled, const T* eigenvalues,
                      const T* eigenvectors, const T* p, const T* rho, double eps, Out* y,
                      T* projected);

template <class In, class T>
void run_sample_backward(const Device&, const Layout& s, const In* grad, const T* projected,
                         const T* eigenvalues, const T* eigenvectors, const T* p, const T* rho,
                         double eps, In* dx);

}  // namespace fastwhiten::cpu
