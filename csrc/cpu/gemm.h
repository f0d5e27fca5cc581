// Large products by our own inner kernels: c [m, n] (+)= alpha op(a) op(b), row-major.
#pragma once

#include <cstdint>

namespace fastwhiten::cpu {

// Whether the inner kernels of this processor, for a product of this size, are faster than BLAS.
template <class T>
bool prefers_blocked_gemm(int64_t m, int64_t n, int64_t k);

// op(a) [m, k], op(b) [k, n]; leading dimensions are row strides. lower: m = n and only the lower
// triangle counts, blocks above it are left as they were. The bits of c do not depend on the number
// of threads.
template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                  const T* a, int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc,
                  bool lower);

}  // namespace fastwhiten::cpu
