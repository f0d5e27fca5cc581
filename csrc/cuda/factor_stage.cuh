// factor: from a blended covariance to its whitening matrix, by the eigensolver or by Cholesky.
#pragma once

#include "cholesky.cuh"
#include "factor.cuh"

namespace fastwhiten {
namespace cuda {

template <class Device, class T>
void run_factor(Device& device, int64_t G, int64_t D, const T* blended, const T* rho, double eps,
                int64_t kind, const T* start, T* eigenvalues, T* basis, T* matrix) {
  if (kind != 2) {
    device.eigh(G, D, blended, eigenvalues, basis, start);
    run_matrix(device, G, D, static_cast<const T*>(eigenvalues), static_cast<const T*>(basis), rho,
               eps, kind, eigenvalues, matrix);
  } else if (D <= kCholeskyLimit && cholesky_shared_bytes<T>(D) <= device.shared_limit()) {
    run_cholesky(device, G, D, blended, rho, eps, matrix);
  } else {
    device.cholesky(G, D, blended, rho, eps, matrix);
  }
}

template <class Device, class T>
void run_factor(Device& device, int64_t G, int64_t D, const T* covariance, const T* running,
                const T* rho, double batch_weight, double eps, int64_t kind, const T* start,
                T* eigenvalues, T* basis, T* matrix) {
  auto blended = device.template allocate<T>(G * D * D);
  run_blend(device, G, D, covariance, running, batch_weight, blended.get());
  run_factor(device, G, D, blended.get(), rho, eps, kind, start, eigenvalues, basis, matrix);
}

}  // namespace cuda
}  // namespace fastwhiten
