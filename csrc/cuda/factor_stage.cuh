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

}  // namespace cuda
}  // namespace fastwhiten
