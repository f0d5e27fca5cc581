// a = U diag(l) U^T for every matrix: l ascending, eigenvectors as columns of U, signs made unique.
//
// Up to D = 128 or so QL (tridiagonal_impl.h, ql_impl.h; up to 32 in float64), up to 1024 divide
// and conquer (divide.h), above it LAPACK's syevd. Matrices go side by side; from
// D = 192 or so one matrix takes all threads. A non-finite matrix gives NaN for
// itself alone. Bytes: a once, U twice (LAPACK's rows are transposed).
#include <algorithm>

#include "device.h"
#include "parallel.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {

template <class T>
void Device::eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T*,
                  int32_t*) const {
  for_groups(B, eigen_flops<T>(D), [&](int64_t b) {
    Buffer<T> work(D * D);
    const T* from = a + b * D * D;  // [D, D]
    for (int64_t i = 0; i < D; ++i) std::copy_n(from + i * D, i + 1, work.get() + i * D);
    mirror(D, work.get());
    symmetric_eigen(D, work.get(), values + b * D);
    transpose(D, work.get(), vectors + b * D * D);
  });
}

template void Device::eigh(int64_t, int64_t, const float*, float*, float*, const float*,
                           int32_t*) const;
template void Device::eigh(int64_t, int64_t, const double*, double*, double*, const double*,
                           int32_t*) const;

}  // namespace fastwhiten::cpu
