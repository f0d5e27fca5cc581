// A whole forward, and a whole backward: the stages' launches one after another on one stream.
//
// Forward: one launch for few rows, whatever kind and shrinkage (small_forward.cuh), else
// statistics (2) -> [intensity (1 or 2)] -> eigensolver and W (1, or 3 where a block does not do
// both) -> apply (1); cholesky: one launch for the factor. Backward: one launch for few rows
// (small_backward.cuh), else reduce (1 or 2) -> matrix (1; 4 or 5 for D > 64) -> apply (1). Bytes
// and determinism: those of the stages.
#pragma once

#include "small_backward.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

template <class Device, class In, class T>
void run_whiten_forward(Device& device, const WhitenForward<In, T>& in) {
  const int64_t G = in.s.groups, D = in.s.width;
  auto mixed = device.template allocate<T>(in.running != nullptr ? G * D * D : 0);
  T* const blended = in.running != nullptr ? mixed.get() : nullptr;
  const SmallForward<In, T> small = {in.s,
                                     in.x,
                                     in.gamma,
                                     in.beta,
                                     in.p,
                                     in.running,
                                     static_cast<T>(in.batch_weight),
                                     static_cast<T>(in.eps),
                                     in.kind,
                                     static_cast<int>(in.method),
                                     static_cast<T>(in.value),
                                     in.start,
                                     in.y,
                                     in.mean,
                                     in.covariance,
                                     blended,
                                     in.eigenvalues,
                                     in.basis,
                                     in.matrix,
                                     in.rho};
  if (run_small_forward(device, small)) return;
  run_statistics(device, Statistics<In, T>{in.s, in.x, in.p, in.mean, in.covariance, in.running,
                                           in.batch_weight, blended});
  const T* const rho = in.method != 0 ? in.rho : nullptr;
  if (in.method != 0) {
    run_intensity(device, Intensity<In, T>{in.s, in.x, in.mean, in.covariance, in.running, in.p,
                                           in.batch_weight, in.method, in.value, in.rho});
  }
  const T* const factored = blended != nullptr ? blended : in.covariance;
  run_factor_blended(device, Factor<T>{G, D, factored, nullptr, rho, 1.0, in.eps, in.kind, in.start,
                                       in.eigenvalues, in.basis, in.matrix});
  run_apply(device, Apply<In, T>{in.s, in.x, in.mean, in.matrix, in.gamma, in.beta, in.y});
}

template <class Device, class In, class T>
void run_whiten_backward(Device& device, const WhitenBackward<In, T>& in) {
  const T tie = tie_tolerance<T>(in.s.width);
  const BackwardMatrixArguments<T> matrices = {in.s.groups,
                                               in.s.width,
                                               static_cast<int>(in.kind),
                                               nullptr,
                                               in.eigenvalues,
                                               in.basis,
                                               in.matrix,
                                               in.gamma,
                                               in.rho,
                                               static_cast<T>(in.batch_weight),
                                               tie,
                                               nullptr,
                                               in.grad_gamma};
  const SmallBackward<In, T> small = {in.s, in.grad,  in.x,  in.mean,
                                      in.p, matrices, in.dx, in.grad_sum};
  if (run_small_backward(device, small)) return;
  const int64_t square = in.s.groups * in.s.width * in.s.width;
  auto cross = device.template allocate<T>(square), inner = device.template allocate<T>(square);
  run_backward_reduce(
      device, BackwardReduce<In, T>{in.s, in.x, in.grad, in.mean, in.grad_sum, cross.get()});
  run_backward_matrix(
      device,
      BackwardMatrix<T>{in.s.groups, in.s.width, cross.get(), in.eigenvalues, in.basis, in.matrix,
                        in.gamma, in.rho, in.batch_weight, in.kind, inner.get(), in.grad_gamma});
  run_backward_apply(device, BackwardApply<In, T>{in.s, in.x, in.grad, in.mean, in.grad_sum,
                                                  in.matrix, inner.get(), in.gamma, in.p, in.dx});
}

}  // namespace cuda
}  // namespace fastwhiten
