// Symmetric D x D matrices: products of which half is computed, mirroring, eigenvectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "linear_algebra.h"

namespace fastwhiten::cpu {

// c [D, D] = alpha * op(a) op(b) + beta * c for a product known to be symmetric, of which the lower
// triangle is what counts: the upper right block is left out where that is worth a second call.
template <class T>
void gemm_lower(bool transpose_a, bool transpose_b, int64_t D, int64_t k, T alpha, const T* a,
                int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  constexpr int64_t kSplitFrom = 96;  // below, two products take longer than one
  if (D < kSplitFrom) {
    gemm(transpose_a, transpose_b, D, D, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  const int64_t top = D / 2 / 16 * 16, bottom = D - top;
  const T* lower = transpose_a ? a + top : a + top * lda;
  gemm(transpose_a, transpose_b, top, top, k, alpha, a, lda, b, ldb, beta, c, ldc);
  gemm(transpose_a, transpose_b, bottom, D, k, alpha, lower, lda, b, ldb, beta, c + top * ldc, ldc);
}

// c [D, D] = alpha * b^T b + beta * c with b [m, D] (transposed), or alpha * b b^T + beta * c with
// b [D, m].
template <class T>
void gemm_symmetric(bool transposed, int64_t D, int64_t m, T alpha, const T* b, int64_t ld, T beta,
                    T* c, int64_t ldc) {
  gemm_lower(transposed, !transposed, D, m, alpha, b, ld, b, ld, beta, c, ldc);
}

constexpr int64_t kTransposeBlock = 16;  // both blocks of a transposed copy stay in the L1 cache

// Copies the lower triangle of c [D, D] onto the upper one.
template <class T>
void mirror(int64_t D, T* c) {
  for (int64_t i0 = 0; i0 < D; i0 += kTransposeBlock) {
    for (int64_t j0 = 0; j0 <= i0; j0 += kTransposeBlock) {
      for (int64_t i = i0; i < std::min(D, i0 + kTransposeBlock); ++i) {
        for (int64_t j = j0; j < std::min(i, j0 + kTransposeBlock); ++j)
          c[j * D + i] = c[i * D + j];
      }
    }
  }
}

// to [D, D] = from^T.
template <class T>
void transpose(int64_t D, const T* from, T* to) {
  for (int64_t i0 = 0; i0 < D; i0 += kTransposeBlock) {
    for (int64_t j0 = 0; j0 < D; j0 += kTransposeBlock) {
      for (int64_t i = i0; i < std::min(D, i0 + kTransposeBlock); ++i) {
        for (int64_t j = j0; j < std::min(D, j0 + kTransposeBlock); ++j)
          to[i * D + j] = from[j * D + i];
      }
    }
  }
}

template <class T>
void fill_nan(T* p, int64_t count) {
  std::fill_n(p, count, std::numeric_limits<T>::quiet_NaN());
}

// x * 0 is 0 for finite x and NaN otherwise: one pass, no branch per element.
template <class T>
bool all_finite(const T* p, int64_t count) {
  T sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += p[i] * T(0);
  return sum == T(0);
}

// a [n, n] symmetric -> its eigenvectors as rows, values [n] ascending. The component of largest
// magnitude (the first one on ties) of every eigenvector is made positive, so equal matrices give
// equal vectors. A matrix that is not finite, or on which LAPACK fails, gives false and NaN in
// both.
template <class T>
bool symmetric_eigen(int64_t n, T* a, T* values) {
  if (!all_finite(a, n * n) || !syevd(n, a, values)) {
    fill_nan(a, n * n);
    fill_nan(values, n);
    return false;
  }
  for (int64_t j = 0; j < n; ++j) {
    T* v = a + j * n;  // [n]
    T largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(v[i]));
    int64_t at = 0;
    while (at + 1 < n && std::abs(v[at]) != largest) ++at;
    if (v[at] < 0) {
      for (int64_t i = 0; i < n; ++i) v[i] = -v[i];
    }
  }
  return true;
}

// Flops of the eigensolve, to choose who works: 4/3 n^3 to tridiagonal form, 2 to 4 n^3 for the
// vectors; they run at a fifth of the speed of a product, hence the factor.
inline double eigen_flops(int64_t n) {
  const double d = static_cast<double>(n);
  return 25 * d * d * d;
}

}  // namespace fastwhiten::cpu
