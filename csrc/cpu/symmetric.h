// Symmetric D x D matrices: products of which half is computed, mirroring, eigenvectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "divide.h"
#include "gemm.h"
#include "kernels.h"
#include "linear_algebra.h"
#include "parallel.h"
#include "workspace.h"

namespace fastwhiten::cpu {

// c [D, D] = alpha * op(a) op(b) + beta * c for a product known to be symmetric, of which the lower
// triangle is what counts: the upper right block is left out where that is worth a second call.
template <class T>
void gemm_lower(bool transpose_a, bool transpose_b, int64_t D, int64_t k, T alpha, const T* a,
                int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (own_gemm(transpose_a, transpose_b, D, D, k, alpha, a, lda, b, ldb, beta, c, ldc, true)) {
    return;
  }
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

// to [D, D] = from^T.
template <class T>
void transpose(int64_t D, const T* from, T* to) {
  for_rows(D, D, [&](int64_t begin, int64_t end) {
    product_kernels<T>().transpose(end - begin, D, from + begin * D, D, to + begin, D);
  });
}

// Copies the lower triangle of c [D, D] onto the upper one.
template <class T>
void mirror(int64_t D, T* c) {
  constexpr int64_t kBlock = 16;  // a vector of float
  for_rows(D, D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t rows = std::min(kBlock, end - i);
      product_kernels<T>().transpose(rows, i, c + i * D, D, c + i, D);  // left of the diagonal
      for (int64_t r = i + 1; r < i + rows; ++r) {
        for (int64_t k = i; k < r; ++k) c[k * D + r] = c[r * D + k];
      }
    }
  });
}

template <class T>
void fill_nan(T* p, int64_t count) {
  std::fill_n(p, count, std::numeric_limits<T>::quiet_NaN());
}

// reduce over p [count], in independent lanes so that it vectorises; f(lane, element), then
// combine(lane, lane).
template <class T, class F, class G>
T reduce(const T* p, int64_t count, const F& f, const G& combine) {
  constexpr int64_t kLanes = 16;
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = f(lanes[k], p[i + k]);
  }
  for (; i < count; ++i) lanes[0] = f(lanes[0], p[i]);
  for (int64_t k = 1; k < kLanes; ++k) lanes[0] = combine(lanes[0], lanes[k]);
  return lanes[0];
}

// x * 0 is 0 for finite x and NaN otherwise: one pass, no branch per element.
template <class T>
bool all_finite(const T* p, int64_t count) {
  const auto add = [](T sum, T x) { return sum + x; };
  return reduce(p, count, [](T sum, T x) { return sum + x * T(0); }, add) == T(0);
}

template <class T>
T largest_magnitude(const T* p, int64_t count) {
  const auto larger = [](T a, T b) { return a > b ? a : b; };
  return reduce(p, count, [&](T most, T x) { return larger(most, std::abs(x)); }, larger);
}

// Up to this order eigenproblems in float32 are solved in float64: a gradient through close
// eigenvalues multiplies the vectors' errors by one over their distance. It takes 1.2 (n = 8)
// to 1.6 times (n = 32) as long, and is still faster than LAPACK in float32.
constexpr int64_t kExact = 32;

// How many eigenproblems take less time at once than one after another.
template <class T>
int64_t eigen_at_once(int64_t n) {
  return eigen_solver<T>(n) == Solver::kQl ? eigen_kernels<T>().at_once : 1;
}

// a [count, n, n] symmetric and finite -> eigenvectors as rows, values [count, n] ascending: by QL.
// At most eigen_at_once matrices.
template <class T>
void solve_by_ql(int64_t n, int64_t count, T* a, T* values, bool* solved) {
  const EigenKernels<T>& own = eigen_kernels<T>();
  Buffer<T> work(own.work_size(n, count));
  own.solve(n, count, a, values, work.get(), solved);
}

// The same: by whom is fastest. solved [count]: false where it did not converge.
template <class T>
void eigensystems(int64_t n, int64_t count, T* a, T* values, bool* solved) {
  const Solver solver = eigen_solver<T>(n);
  if (solver != Solver::kQl) {
    for (int64_t k = 0; k < count; ++k) {
      T *one = a + k * n * n, *l = values + k * n;  // `one` is as it was where the first failed
      solved[k] = (solver == Solver::kDivide && divide_and_conquer(n, one, l)) || syevd(n, one, l);
    }
  } else if (std::is_same_v<T, float> && n <= kExact) {
    Buffer<double> wide(count * n * n), l(count * n);
    std::copy_n(a, count * n * n, wide.get());
    solve_by_ql(n, count, wide.get(), l.get(), solved);
    const auto narrow = [](double x) { return static_cast<T>(x); };
    std::transform(wide.get(), wide.get() + count * n * n, a, narrow);
    std::transform(l.get(), l.get() + count * n, values, narrow);
  } else {
    solve_by_ql(n, count, a, values, solved);
  }
}

// a [count, n, n] symmetric -> eigenvectors as rows, values [count, n] ascending; at most
// eigen_at_once matrices. The component of largest magnitude (the first one on ties) of every
// eigenvector is made positive, so equal matrices give equal vectors. A matrix that is not finite,
// or on which the solver fails, gives NaN in both, and false in solved [count].
template <class T>
void symmetric_eigen(int64_t n, int64_t count, T* a, T* values, bool* solved) {
  bool finite[kMostAtOnce];
  for (int64_t k = 0; k < count; ++k) {
    finite[k] = all_finite(a + k * n * n, n * n);
    if (!finite[k]) std::fill_n(a + k * n * n, n * n, T(0));
  }
  eigensystems(n, count, a, values, solved);
  for (int64_t k = 0; k < count; ++k) {
    T* const vectors = a + k * n * n;
    solved[k] = solved[k] && finite[k];
    if (!solved[k]) {
      fill_nan(vectors, n * n);
      fill_nan(values + k * n, n);
      continue;
    }
    for_rows(n, n, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        T* v = vectors + j * n;  // [n]
        const T largest = largest_magnitude(v, n);
        int64_t at = 0;
        while (at + 1 < n && std::abs(v[at]) != largest) ++at;
        if (v[at] < 0) {
          for (int64_t i = 0; i < n; ++i) v[i] = -v[i];
        }
      }
    });
  }
}

// The eigensolve in flops of a product that takes as long, to choose who works. LAPACK: 4/3 n^3 to
// tridiagonal form, 2 to 4 n^3 for the vectors, at a fifth of a product's speed. QL is bound by the
// latency of n^2 rotations; it is serial inside, so it never asks for a team. Divide and conquer:
// 5 n^3 of products, and as many divisions and steps as n^2 says; two threads take .95 of the time
// of one at n = 129, .83 at 192, .66 at 512.
template <class T>
double eigen_flops(int64_t n) {
  constexpr int64_t kTeamFrom = 192;
  const double d = static_cast<double>(n);
  const Solver solver = eigen_solver<T>(n);
  if (solver == Solver::kLibrary) return 25 * d * d * d;
  const double flops =
      solver == Solver::kQl ? 12 * d * d * d + 800 * d * d : 8 * d * d * d + 2000 * d * d;
  const bool shared = solver == Solver::kDivide && n >= kTeamFrom;
  return shared ? flops : std::min(flops, kMostFlopsOfOneThread);
}

}  // namespace fastwhiten::cpu
