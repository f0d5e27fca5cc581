// a = U diag(l) U^T for every matrix: l ascending, eigenvectors as columns of U, signs made unique.
//
// Up to D = 128 or so QL (tridiagonal_impl.h, ql_impl.h; up to 32 in float64), up to 1024 divide
// and conquer (divide.h), above it LAPACK's syevd. Matrices go side by side, and by QL several at
// once in a thread; from D = 192 or so one matrix takes all threads. A non-finite matrix gives NaN
// for itself alone. Bytes: a once, U twice (LAPACK's rows are transposed).
#include <algorithm>

#include "device.h"
#include "parallel.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {

template <class T>
void Device::eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T*,
                  int32_t*) const {
  for_groups_at_once(B, eigen_at_once<T>(D), eigen_flops<T>(D), [&](int64_t b, int64_t count) {
    const int64_t at = b * D * D;
    Buffer<T> work(count * D * D);
    for (int64_t k = 0; k < count; ++k) {
      const T* from = a + at + k * D * D;  // [D, D]
      T* to = work.get() + k * D * D;
      for (int64_t i = 0; i < D; ++i) std::copy_n(from + i * D, i + 1, to + i * D);
      mirror(D, to);
    }
    bool solved[kMostAtOnce];
    symmetric_eigen(D, count, work.get(), values + b * D, solved);
    for (int64_t k = 0; k < count; ++k) {
      transpose(D, work.get() + k * D * D, vectors + at + k * D * D);
    }
  });
}

template void Device::eigh(int64_t, int64_t, const float*, float*, float*, const float*,
                           int32_t*) const;
template void Device::eigh(int64_t, int64_t, const double*, double*, double*, const double*,
                           int32_t*) const;

}  // namespace fastwhiten::cpu
