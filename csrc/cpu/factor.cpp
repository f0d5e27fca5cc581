// S' = beta S + (1 - beta) S_running ; S = (1 - rho) S' + (rho trace(S') / D + eps) I, per group.
// zca: S = U diag(l) U^T, W = U diag(1 / sqrt l) U^T ; pca: W = U diag(1 / sqrt l) ;
// cholesky: S = L L^T, W = L^{-T}.
//
// Shrinkage and eps move the eigenvalues only: the eigensolve is of S', its l are shifted
// afterwards. The zca matrix is the product of U diag(l^-1/4) with its own transpose: half of it is
// computed, the rest mirrored. A group that is not finite or not positive definite gives NaN for
// itself alone; nothing throws.
#include <cmath>

#include "parallel.h"
#include "stages.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

// out [D, D] = beta S + (1 - beta) S_running, exactly symmetric. Returns trace / D.
template <class T>
T blend(int64_t D, const T* batch, const T* running, T beta, T* out) {
  Buffer<T> flipped(D * D);
  transpose(D, batch, flipped.get());
  const T share = running == nullptr ? T(1) / 2 : beta / 2;
  for (int64_t i = 0; i < D * D; ++i) out[i] = share * (batch[i] + flipped[i]);
  if (running != nullptr) {
    transpose(D, running, flipped.get());
    for (int64_t i = 0; i < D * D; ++i) out[i] += (1 - beta) / 2 * (running[i] + flipped[i]);
  }
  T trace = 0;
  for (int64_t i = 0; i < D; ++i) trace += out[i * D + i];
  return trace / static_cast<T>(D);
}

// a [D, D]: eigenvectors of S' as rows on entry, scratch on return. values [D]: eigenvalues of S',
// then of S. basis [D, D], matrix [D, D].
template <class T>
bool factor_eigen(int64_t D, bool zca, T rho, T eps, T mean_diagonal, T* a, T* values, T* basis,
                  T* matrix) {
  const T shift = rho * mean_diagonal + eps;
  for (int64_t j = 0; j < D; ++j) {
    const T shifted = (1 - rho) * values[j] + shift;
    // S' is positive semidefinite: an eigenvalue that falls below zero did so by rounding.
    values[j] = shifted < eps ? eps : shifted;
    if (!(values[j] > 0) || !std::isfinite(values[j])) return false;
  }
  transpose(D, a, basis);
  if (zca) {
    for (int64_t j = 0; j < D; ++j) {  // rows of a are eigenvectors
      const T scale = 1 / std::sqrt(std::sqrt(values[j]));
      for (int64_t i = 0; i < D; ++i) a[j * D + i] *= scale;
    }
    gemm_symmetric(true, D, D, T(1), a, D, T(0), matrix, D);
    mirror(D, matrix);
    return true;
  }
  Buffer<T> scale(D);
  for (int64_t j = 0; j < D; ++j) scale[j] = 1 / std::sqrt(values[j]);
  for (int64_t i = 0; i < D; ++i) {
    for (int64_t j = 0; j < D; ++j) matrix[i * D + j] = basis[i * D + j] * scale[j];
  }
  return true;
}

// a [D, D]: S' on entry, scratch on return. matrix [D, D] = L^{-T}.
template <class T>
bool factor_cholesky(int64_t D, T rho, T eps, T mean_diagonal, T* a, T* matrix) {
  for (int64_t i = 0; i < D * D; ++i) a[i] *= 1 - rho;
  for (int64_t i = 0; i < D; ++i) a[i * D + i] += rho * mean_diagonal + eps;
  if (!all_finite(a, D * D) || !cholesky(D, a)) return false;
  inverse_transposed(D, a, matrix);
  return true;
}

}  // namespace

template <class T>
void run_factor(const Device&, const Factor<T>& args) {
  const int64_t D = args.D, square = D * D;
  const bool spectral = args.kind != kCholesky;
  const double flops = spectral ? eigen_flops<T>(D) : 8.0 * static_cast<double>(square * D);
  const int64_t most = spectral ? eigen_at_once<T>(D) : 1;
  for_groups_at_once(args.G, most, flops, [&](int64_t first, int64_t count) {
    Buffer<T> work(count * square);  // [count, D, D]
    T mean_diagonal[kMostAtOnce];
    bool solved[kMostAtOnce];
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = (first + k) * square;
      const T* old = args.running == nullptr ? nullptr : args.running + at;
      mean_diagonal[k] = blend(D, args.covariance + at, old, static_cast<T>(args.batch_weight),
                               work.get() + k * square);
    }
    if (spectral) {
      symmetric_eigen(D, count, work.get(), args.eigenvalues + first * D, solved);
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t g = first + k, at = g * square;
      const T r = args.rho == nullptr ? T(0) : args.rho[g], e = static_cast<T>(args.eps);
      T *const a = work.get() + k * square, *const matrix = args.matrix + at;
      if (!spectral) {
        if (!factor_cholesky(D, r, e, mean_diagonal[k], a, matrix)) fill_nan(matrix, square);
        continue;
      }
      T *const values = args.eigenvalues + g * D, *const basis = args.basis + at;
      if (!solved[k] ||
          !factor_eigen(D, args.kind == kZca, r, e, mean_diagonal[k], a, values, basis, matrix)) {
        fill_nan(values, D);
        fill_nan(basis, square);
        fill_nan(matrix, square);
      }
    }
  });
}

#define FASTWHITEN_INSTANTIATE(T) template void run_factor(const Device&, const Factor<T>&);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
