// The stages as functions of pointers: what an op calls, and whiten.cuh one after another.
//
// Device says where: it has allocate<T>(count), whose result frees itself, and launch(kernel,
// blocks, threads, shared bytes, arguments...). csrc/cuda/device.h is a CUDA stream; tests have the
// emulator. The definitions are in <stage>.cuh, for a CUDA stream instantiated in <stage>.cu.
// Pointers p, running, blended, rho, gamma and beta may be null. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "../common/passes.h"

namespace fastwhiten {
namespace cuda {

// blended [G, D, D]: batch_weight covariance + (1 - batch_weight) running, if wanted.
template <class Device, class In, class T>
void run_statistics(Device& device, const Layout& s, const In* x, const T* p, T* mean,
                    T* covariance, const T* running = nullptr, double batch_weight = 1,
                    T* blended = nullptr);

// rho [G]; method: 1 fixed (value), 2 oas, 3 ledoit-wolf.
template <class Device, class In, class T>
void run_intensity(Device& device, const Layout& s, const In* x, const T* mean, const T* covariance,
                   const T* running, const T* p, double batch_weight, int64_t method, double value,
                   T* rho);

// blended [G, D, D], exactly symmetric; eigenvalues, basis are not written for cholesky. The
// eigensolver begins from start [G, D, D], unless it is null.
template <class Device, class T>
void run_factor(Device& device, int64_t G, int64_t D, const T* blended, const T* rho, double eps,
                int64_t kind, const T* start, T* eigenvalues, T* basis, T* matrix);

// The same of a covariance that is blended first, and symmetrised.
template <class Device, class T>
void run_factor(Device& device, int64_t G, int64_t D, const T* covariance, const T* running,
                const T* rho, double batch_weight, double eps, int64_t kind, const T* start,
                T* eigenvalues, T* basis, T* matrix);

template <class Device, class In, class T>
void run_apply(Device& device, const Layout& s, const In* x, const T* mean, const T* matrix,
               const T* gamma, const T* beta, In* y);

template <class Device, class In, class T>
void run_backward_reduce(Device& device, const Layout& s, const In* x, const In* grad,
                         const T* mean, T* grad_sum, T* cross);

template <class Device, class T>
void run_backward_matrix(Device& device, int64_t G, int64_t D, const T* cross, const T* eigenvalues,
                         const T* basis, const T* matrix, const T* gamma, const T* rho,
                         double batch_weight, int64_t kind, T* inner, T* grad_gamma);

template <class Device, class In, class T>
void run_backward_apply(Device& device, const Layout& s, const In* x, const In* grad, const T* mean,
                        const T* grad_sum, const T* matrix, const T* inner, const T* gamma,
                        const T* p, In* dx);

template <class Device, class In, class T>
void run_whiten_forward(Device& device, const WhitenForward<In, T>& in);

template <class Device, class In, class T>
void run_whiten_backward(Device& device, const WhitenBackward<In, T>& in);

template <class Device, class In, class T>
void run_sample_statistics(Device& device, const Layout& s, const In* x, const T* p, T* mean,
                           T* scaled, T* gram);

template <class Device, class Out, class T>
void run_sample_apply(Device& device, const Layout& s, const T* scaled, const T* eigenvalues,
                      const T* eigenvectors, const T* p, const T* rho, double eps, Out* y,
                      T* projected);

template <class Device, class In, class T>
void run_sample_backward(Device& device, const Layout& s, const In* grad, const T* projected,
                         const T* eigenvalues, const T* eigenvectors, const T* p, const T* rho,
                         double eps, In* dx);

}  // namespace cuda
}  // namespace fastwhiten
