// Products by our own inner kernels: c [m, n] (+)= alpha op(a) op(b), row-major.
#pragma once

#include <cstdint>

namespace fastwhiten::cpu {

// op(a) [m, k], op(b) [k, n]; leading dimensions are row strides. lower: m = n and only the lower
// triangle counts, blocks above it are left as they were. The bits of c do not depend on the number
// of threads. False, and nothing is done, where BLAS is faster on this processor or beta is neither
// 0 nor 1.
template <class T>
bool own_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
              const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc,
              bool lower);

}  // namespace fastwhiten::cpu
