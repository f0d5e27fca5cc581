// factor: from a blended covariance to its whitening matrix, by the eigensolver or by Cholesky.
#pragma once

#include "cholesky.cuh"
#include "factor.cuh"

namespace fastwhiten {
namespace cuda {

template <class Device, class T>
void run_factor_blended(Device& device, const Factor<T>& args) {
  const int64_t G = args.G, D = args.D;
  const T* const blended = args.covariance;
  if (args.kind != 2) {
    if (device.block_factor(args)) return;
    device.eigh(G, D, blended, args.eigenvalues, args.basis, args.start);
    run_matrix(device, G, D, static_cast<const T*>(args.eigenvalues),
               static_cast<const T*>(args.basis), args.rho, args.eps, args.kind, args.eigenvalues,
               args.matrix);
  } else if (D <= kCholeskyLimit && cholesky_shared_bytes<T>(D) <= device.shared_limit()) {
    run_cholesky(device, G, D, blended, args.rho, args.eps, args.matrix);
  } else {
    device.cholesky(G, D, blended, args.rho, args.eps, args.matrix);
  }
}

template <class Device, class T>
void run_factor(Device& device, const Factor<T>& args) {
  auto blended = device.template allocate<T>(args.G * args.D * args.D);
  run_blend(device, args.G, args.D, args.covariance, args.running, args.batch_weight,
            blended.get());
  Factor<T> after = args;
  after.covariance = blended.get();
  run_factor_blended(device, after);
}

}  // namespace cuda
}  // namespace fastwhiten
