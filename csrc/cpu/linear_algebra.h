// Dense linear algebra for the CPU kernels, row-major: BLAS and LAPACK entry points that
// libtorch_cpu exports where it does (the x86-64 wheels do, it is no promise), else the same
// through aten::.
#pragma once

#include <cstdint>
#include <string>

namespace fastwhiten::cpu {

// By our own blocks (gemm.h) where those are faster.
// C [m, n] = alpha * op(A) op(B) + beta * C; op(A) is [m, k], op(B) is [k, n]; leading dimensions
// are row strides. beta = 0 never reads C.
template <class T>
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

// Eigenvectors and ascending eigenvalues [n] of the symmetric matrix a [n, n] (full storage), which
// is overwritten with the eigenvectors as rows. False when LAPACK did not converge. a must be
// finite.
template <class T>
bool syevd(int64_t n, T* a, T* eigenvalues);

// Lower Cholesky factor in place: a [n, n], of which the lower triangle is read and written. False
// when a is not positive definite.
template <class T>
bool cholesky(int64_t n, T* a);

// inverse [n, n] = L^{-T} (upper triangular, zeros below) of the lower triangular factor [n, n].
template <class T>
void inverse_transposed(int64_t n, const T* factor, T* inverse);

// What serves the calls above: "libtorch_cpu: sgemm_ ..." or "aten".
std::string linear_algebra_provider();

// While one lives, BLAS and LAPACK calls of this thread run on this thread alone: small products
// lose more to the start of a team than they gain, and their bits do not depend on its size.
class SerialLinearAlgebra {
 public:
  SerialLinearAlgebra();
  ~SerialLinearAlgebra();
  SerialLinearAlgebra(const SerialLinearAlgebra&) = delete;
  SerialLinearAlgebra& operator=(const SerialLinearAlgebra&) = delete;

  static bool lives();  // one of this thread

 private:
  int previous_;
};

}  // namespace fastwhiten::cpu
