// A = Q T Q^T with T tridiagonal, T = Z diag(l) Z^T by divide and conquer, and Q Z.
//
// Q: Householder reflectors from the last row upwards, so that what is left is a leading block
// whose rows start where A's do. The update of a panel of reflectors is one product of the lower
// triangle; until then a row is brought up to date when its turn comes, and so is A v.
// (Golub and Van Loan, Matrix Computations, 4th ed., section 8.3.1; LAPACK's latrd.)
//
// Z: T without |e_k| u u^T, u = (..., 1, +-1, ...), falls into two halves. From their eigensystems
// come those of T: its eigenvalues are the roots of a secular function, its vectors are those of
// the halves times a matrix that is computed from the roots. In float64, but for the vectors.
// Leaves: QL. (Cuppen 1981; Gu and Eisenstat 1995; LAPACK's laed1 to laed4.)
//
// Q Z: reflectors in blocks I - Y S Y^T.
//
// Work is cut into units by the shape alone, and sums of several units are added in order: so no
// bit depends on the number of threads.
#include "divide.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels.h"
#include "parallel.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kPairs = 16;        // reflectors of a panel
constexpr int64_t kTile = 48;         // rows of a unit of its update: 192 bytes or twice that
constexpr int64_t kSharedRows = 128;  // of a unit of its products A v, where threads share them
constexpr int64_t kStrip = 24;        // rows of a unit of the products with vectors, as in gemm.cpp
constexpr int64_t kReflectors = 48;   // of a block in Q Z
// Terms that a product sums before it adds them to the others: runs of equal ones, which a matrix
// of equal elements gives, are rounded the same way. Of the orthogonality's error there 128 make
// twice.
constexpr int64_t kDepth = 32;
template <class T>
constexpr int64_t kColumns = 192 / sizeof(T);  // three vectors of 64 bytes, as in gemm.cpp

static_assert(kPairs <= kMostPairs && 2 * kPairs % 8 == 0);

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The unit-th of units whose work grows: neighbours are a small and a large one, so that threads
// that share them evenly share the work.
int64_t balanced(int64_t unit, int64_t units) {
  return unit % 2 == 0 ? unit / 2 : units - 1 - unit / 2;
}

// ---- A = Q T Q^T ----

// p [ld, and ld for every unit but the first] = a v, a the leading block of order k.
template <class T>
void multiply_leading(int64_t k, int64_t ld, const T* a, const T* v, T* p) {
  constexpr int64_t kSharedFrom = int64_t{1} << 20;  // bytes of the triangle: an L2 cache
  const auto multiply = eigen_kernels<T>().multiply_lower;
  const bool shared = k * k / 2 * static_cast<int64_t>(sizeof(T)) >= kSharedFrom;
  const int64_t rows = shared ? kSharedRows : k, units = parts_of(k, rows);
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) {
      const int64_t i = balanced(u, units) * rows, end = std::min(k, i + rows);
      T* to = p + i / rows * ld;
      std::fill_n(to, padded<T>(end), T(0));
      multiply(i, end, ld, a, v, to);
    }
  };
  if (!shared) return run(0, 1);
  torch::stable::parallel_for(0, units, 1, run);
  for (int64_t u = 1; u < units; ++u) {  // the first holds the sum of the rows before
    const T* from = p + u * ld;
    for (int64_t i = 0; i < u * rows; ++i) p[i] += from[i];
    std::copy_n(from + u * rows, std::min(k, (u + 1) * rows) - u * rows, p + u * rows);
  }
}

// The lower triangle of the leading block += left^T right, of `count` rows each.
template <class T>
void update_leading(int64_t k, int64_t count, int64_t ld, const T* left, const T* right, T* a) {
  const auto multiply = product_kernels<T>().multiply;
  const int64_t units = parts_of(k, kTile);
  parallel(units, static_cast<double>(k * k * count), [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) {
      const int64_t i = balanced(u, units) * kTile, rows = std::min(kTile, k - i);
      multiply(rows, i + rows, count, left + i, 1, ld, right, ld, a + i * ld, ld, Into::kAdd,
               false);
    }
  });
}

// a [n, ld] -> d [n], e [n] (e_k between d_{k-1} and d_k), and Q: tau [n], v [k] in the row k of a.
template <class T>
void tridiagonalize(int64_t n, int64_t ld, T* a, T* d, T* e, T* tau) {
  const EigenKernels<T>& own = eigen_kernels<T>();
  Buffer<T> left(2 * kPairs * ld), right(2 * kPairs * ld), p(parts_of(n, kSharedRows) * ld);
  std::fill_n(left.get(), 2 * kPairs * ld, T(0));
  std::fill_n(right.get(), 2 * kPairs * ld, T(0));
  for (int64_t k = n - 1, pairs = 0; k >= 0; --k) {
    T* row = a + k * ld;
    tau[k] = own.next_reflector(k, pairs, ld, left.get(), right.get(), row, d + k, e + k);
    if (k == 0) break;
    multiply_leading(k, ld, a, row, p.get());
    own.next_pair(k, pairs, ld, row, tau[k], p.get(), left.get(), right.get());
    if (++pairs == kPairs) {
      update_leading(k, 2 * pairs, ld, left.get(), right.get(), a);
      pairs = 0;
    }
  }
}

// ---- products with packed matrices: panels [k, kColumns] of the columns, side by side ----

template <class T>
int64_t panels_size(int64_t k, int64_t width) {
  return parts_of(width, kColumns<T>) * k * kColumns<T>;
}

// Row l of k rows.
template <class T>
void pack_row(int64_t l, int64_t k, int64_t width, const T* row, T* panels) {
  for (int64_t j = 0; j < width; j += kColumns<T>) {
    T* to = panels + j * k + l * kColumns<T>;
    const int64_t columns = std::min(kColumns<T>, width - j);
    std::copy_n(row + j, columns, to);
    std::fill(to + columns, to + kColumns<T>, T(0));
  }
}

// c [rows, width] (+)= a [rows, k] b, b in panels.
template <class T>
void multiply_panels(int64_t rows, int64_t k, int64_t width, const T* a, int64_t lda,
                     const T* panels, T* c, int64_t ldc, bool add) {
  const auto multiply = product_kernels<T>().multiply;
  for (int64_t j = 0; j < width; j += kColumns<T>) {
    for (int64_t l = 0; l == 0 || l < k; l += kDepth) {
      multiply(rows, std::min(kColumns<T>, width - j), std::min(kDepth, k - l), a + l, lda, 1,
               panels + j * k + l * kColumns<T>, kColumns<T>, c + j, ldc,
               add || l > 0 ? Into::kAdd : Into::kOver, false);
    }
  }
}

// ---- T = Z diag(l) Z^T ----

enum Half : int64_t { kTop, kBoth, kBottom };  // where a vector is not zero

// The merge of two halves of order m in all, top of them in the first: eigenvalues d [m], vectors
// in the rows of v, with |e| (1, +-1)^T (1, +-1) added in between.
template <class T>
class Merge {
 public:
  Merge(int64_t m, int64_t top, double e, double tolerance, double* d, T* v, int64_t ld)
      : m_(m),
        top_(top),
        ld_(ld),
        rho_(2 * std::abs(e)),
        tolerance_(tolerance),
        d_(d),
        v_(v),
        numbers_(6 * stride()),
        indices_(3 * m) {
    const T sign = e < 0 ? T(-1) : T(1);
    for (int64_t i = 0; i < m; ++i) {
      z_[i] = std::sqrt(0.5) * (i < top ? v[i * ld + top - 1] : sign * v[i * ld + top]);
      half_[i] = i < top ? kTop : kBottom;
    }
  }

  bool run() {
    deflate();
    if (count_ == 0) return true;
    if (!find_roots()) return false;
    multiply();
    return true;
  }

 private:
  int64_t stride() const { return padded<double>(m_) + padded<double>(1); }

  // What is within tolerance of an eigenvector of the whole stays as it is: a row with a small z,
  // and of two rows with close eigenvalues the combination that has z = 0. Survivors are listed in
  // ascending order.
  void deflate() {
    int64_t* order = survivors_;  // read ahead of what is written
    std::iota(order, order + m_, int64_t{0});
    std::sort(order, order + m_,
              [&](int64_t i, int64_t j) { return d_[i] != d_[j] ? d_[i] < d_[j] : i < j; });
    for (int64_t at = 0; at < m_; ++at) {
      const int64_t i = order[at];
      if (rho_ * std::abs(z_[i]) <= tolerance_) continue;
      if (count_ > 0 && turn(survivors_[count_ - 1], i)) --count_;
      survivors_[count_++] = i;
    }
  }

  // Makes z_p = 0 by a rotation of the rows p and i, if what this adds besides is negligible.
  bool turn(int64_t p, int64_t i) {
    const double norm = std::hypot(z_[p], z_[i]), c = z_[i] / norm, s = -z_[p] / norm;
    if (std::abs((d_[i] - d_[p]) * c * s) > tolerance_) return false;
    const double lower = d_[p] * c * c + d_[i] * s * s, upper = d_[p] * s * s + d_[i] * c * c;
    d_[p] = lower;
    d_[i] = upper;
    z_[p] = 0;
    z_[i] = norm;
    if (half_[p] != half_[i]) half_[i] = kBoth;
    T *row = v_ + p * ld_, *other = v_ + i * ld_;
    for (int64_t j = 0; j < m_; ++j) {
      const double x = row[j], y = other[j];
      row[j] = static_cast<T>(c * x + s * y);
      other[j] = static_cast<T>(c * y - s * x);
    }
    return true;
  }

  bool find_roots() {
    const EigenKernels<T>& own = eigen_kernels<T>();
    for (int64_t i = 0; i < count_; ++i) {
      poles_[i] = d_[survivors_[i]];
      weights_[i] = rho_ * z_[survivors_[i]] * z_[survivors_[i]];
    }
    pad(poles_);
    std::fill(weights_ + count_, weights_ + padded<double>(count_), 0.0);
    std::atomic<bool> converged{true};
    parallel(count_, flops(200), [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        if (!own.secular_root(j, count_, poles_, weights_, base_ + j, tau_ + j)) converged = false;
      }
    });
    return converged;
  }

  void multiply() {
    const EigenKernels<T>& own = eigen_kernels<T>();
    // Vectors of the first half, of both, of the second: the products then have no blocks of zeros.
    int64_t* order = typed_;
    int64_t starts[4] = {};
    for (int64_t half = kTop; half <= kBottom; ++half) {
      starts[half + 1] = starts[half];
      for (int64_t i = 0; i < count_; ++i) {
        if (half_[survivors_[i]] == half) order[starts[half + 1]++] = i;
      }
    }
    const int64_t upper = starts[kBoth + 1], skipped = starts[kBoth], lower = count_ - skipped;
    Buffer<T> panels(panels_size<T>(upper, top_) + panels_size<T>(lower, m_ - top_));
    T* const lower_panels = panels.get() + panels_size<T>(upper, top_);
    constexpr int64_t kBlock = padded<double>(1);
    const int64_t blocks = parts_of(count_, kBlock);
    parallel(blocks, flops(40), [&](int64_t first, int64_t last) {
      const int64_t begin = first * kBlock, end = std::min(count_, last * kBlock);
      own.secular_weights(begin, end, count_, poles_, base_, tau_, weights_);
      for (int64_t l = begin; l < end; ++l) {
        const T* row = v_ + survivors_[order[l]] * ld_;
        if (l < upper) pack_row(l, upper, top_, row, panels.get());
        if (l >= skipped) pack_row(l - skipped, lower, m_ - top_, row + top_, lower_panels);
      }
    });
    // From here on in the order of the products.
    double* const z = typed_z_;
    for (int64_t l = 0; l < count_; ++l) {
      z[l] = std::copysign(weights_[order[l]], z_[survivors_[order[l]]]);
    }
    double* const poles = weights_;
    for (int64_t l = 0; l < count_; ++l) poles[l] = poles_[order[l]];
    pad(poles);
    std::fill(z + count_, z + padded<double>(count_), 0.0);
    const double work = flops(40) + 2.0 * static_cast<double>(count_ * count_ * m_);
    parallel(parts_of(count_, kStrip), work, [&](int64_t first, int64_t last) {
      Buffer<double> scratch(padded<double>(count_));
      Buffer<T> vectors(kStrip * count_), product(kStrip * m_);
      for (int64_t j = first * kStrip; j < std::min(count_, last * kStrip); j += kStrip) {
        const int64_t rows = std::min(kStrip, count_ - j);
        for (int64_t r = 0; r < rows; ++r) {
          own.secular_vector(count_, poles, z, base_[j + r], tau_[j + r], scratch.get(),
                             vectors.get() + r * count_);
        }
        multiply_panels(rows, upper, top_, vectors.get(), count_, panels.get(), product.get(), m_,
                        false);
        multiply_panels(rows, lower, m_ - top_, vectors.get() + skipped, count_, lower_panels,
                        product.get() + top_, m_, false);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = survivors_[j + r];
          std::copy_n(product.get() + r * m_, m_, v_ + row * ld_);
          d_[row] = base_[j + r] + tau_[j + r];
        }
      }
    });
  }

  void pad(double* poles) const {  // far from every root
    std::fill(poles + count_, poles + padded<double>(count_), 1e30);
  }
  double flops(double per_pair) const { return per_pair * static_cast<double>(count_ * count_); }

  const int64_t m_, top_, ld_;
  const double rho_, tolerance_;
  double* const d_;
  T* const v_;
  Buffer<double> numbers_;
  Buffer<int64_t> indices_;
  double *const z_ = numbers_.get(), *const poles_ = z_ + stride(),
                *const weights_ = poles_ + stride(), *const base_ = weights_ + stride(),
                *const tau_ = base_ + stride(), *const typed_z_ = tau_ + stride();
  int64_t *const survivors_ = indices_.get(), *const typed_ = survivors_ + m_,
                 *const half_ = typed_ + m_;
  int64_t count_ = 0;
};

// d [n] (eigenvalues, in no order), e [n] overwritten, eigenvectors in the rows of v [n, ld].
template <class T>
bool solve_tridiagonal(int64_t n, double* d, double* e, T* v, int64_t ld) {
  constexpr int64_t kSideBySide = 256;  // larger merges take all threads one after another
  double norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    norm = std::max(norm, std::abs(d[i]) + std::abs(e[i]) + (i > 0 ? std::abs(e[i - 1]) : 0));
  }
  const double tolerance = norm * std::numeric_limits<T>::epsilon();
  int64_t parts = 1;
  while (parts_of(n, parts) > kLargestLeaf) parts *= 2;
  for (int64_t i = 1; i < parts; ++i) {
    const int64_t at = i * n / parts;
    d[at - 1] -= std::abs(e[at - 1]);
    d[at] -= std::abs(e[at - 1]);
  }
  std::atomic<bool> converged{true};
  const double size = static_cast<double>(n);
  parallel(parts, 1e4 * size, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * n / parts, count = (i + 1) * n / parts - begin;
      T* block = v + begin * ld + begin;
      if (!eigen_kernels<T>().solve_leaf(count, d + begin, e + begin, block, ld)) converged = false;
    }
  });
  for (parts /= 2; parts > 0 && converged; parts /= 2) {
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i * n / parts, middle = (2 * i + 1) * n / (2 * parts);
        Merge<T> merge((i + 1) * n / parts - begin, middle - begin, e[middle - 1], tolerance,
                       d + begin, v + begin * ld + begin, ld);
        if (!merge.run()) converged = false;
      }
    };
    if (parts_of(n, parts) > kSideBySide) {
      run(0, parts);
    } else {
      parallel(parts, 300 * size * size / static_cast<double>(parts), run);
    }
  }
  return converged;
}

// ---- Q Z ----

// The reflectors [first, last) of Q as I - Y S Y^T: y gets Y in panels, s gets -S Y^T.
template <class T>
void pack_reflectors(int64_t first, int64_t last, int64_t ld, const T* a, const T* tau, T* y,
                     T* s) {
  const int64_t count = last - first, width = last - 1;
  const int64_t row_stride = panels_size<T>(1, width), gram_stride = padded<T>(count);
  Buffer<T> rows(count * row_stride), gram(count * gram_stride), factor(count * count);
  Buffer<T> row(count);
  std::fill_n(rows.get(), count * row_stride, T(0));
  for (int64_t k = first; k < last; ++k) {
    std::copy_n(a + k * ld, k, rows.get() + (k - first) * row_stride);
  }
  for (int64_t l = 0; l < width; ++l) {
    for (int64_t r = 0; r < count; ++r) row[r] = rows[r * row_stride + l];
    pack_row(l, width, count, row.get(), y);
  }
  multiply_panels(count, width, count, rows.get(), row_stride, y, gram.get(), gram_stride, false);
  // Row j of factor is column j of S: tau_j (e_j - S Y^T v_j).
  std::fill_n(factor.get(), count * count, T(0));
  for (int64_t j = 0; j < count; ++j) {
    T* column = factor.get() + j * count;
    for (int64_t l = 0; l < j; ++l) {
      const T scale = tau[first + j] * gram[l * gram_stride + j];
      for (int64_t i = 0; i <= l; ++i) column[i] -= scale * factor[l * count + i];
    }
    column[j] = tau[first + j];
  }
  for (int64_t i = 0; i < count * count; ++i) factor[i] = -factor[i];
  for (int64_t j = 0; j < width; j += kColumns<T>) {
    product_kernels<T>().multiply(count, kColumns<T>, count, factor.get(), 1, count, rows.get() + j,
                                  row_stride, s + j * count, kColumns<T>, Into::kOver, false);
  }
}

// out [n, n]: row j is that of z with the index order[j], times Q^T, of norm 1.
template <class T>
void multiply_by_q(int64_t n, int64_t ld, const T* a, const T* tau, const T* z,
                   const int64_t* order, T* out) {
  const int64_t blocks = parts_of(n - 1, kReflectors);
  const int64_t y_size = panels_size<T>(n, kReflectors), s_size = panels_size<T>(kReflectors, n);
  const auto begin = [&](int64_t b) { return 1 + b * kReflectors; };
  const auto end = [&](int64_t b) { return std::min(n, begin(b) + kReflectors); };
  Buffer<T> y(blocks * y_size), s(blocks * s_size);
  const double cube = static_cast<double>(n * n * n);
  parallel(
      blocks, 2 * kReflectors * cube / static_cast<double>(n), [&](int64_t first, int64_t last) {
        for (int64_t u = first; u < last; ++u) {
          const int64_t b = balanced(u, blocks);
          pack_reflectors(begin(b), end(b), ld, a, tau, y.get() + b * y_size, s.get() + b * s_size);
        }
      });
  parallel(parts_of(n, kStrip), 2 * cube, [&](int64_t first, int64_t last) {
    Buffer<T> strip(kStrip * ld), sums(kStrip * kReflectors);
    for (int64_t i = first * kStrip; i < std::min(n, last * kStrip); i += kStrip) {
      const int64_t rows = std::min(kStrip, n - i);
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(z + order[i + r] * ld, ld, strip.get() + r * ld);
      }
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t count = end(b) - begin(b), width = end(b) - 1;
        multiply_panels(rows, width, count, strip.get(), ld, y.get() + b * y_size, sums.get(),
                        kReflectors, false);
        multiply_panels(rows, count, width, sums.get(), kReflectors, s.get() + b * s_size,
                        strip.get(), ld, true);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = strip.get() + r * ld;
        const T square =
            reduce(row, n, [](T sum, T x) { return sum + x * x; }, [](T x, T y) { return x + y; });
        const T inverse = 1 / std::sqrt(square);
        for (int64_t j = 0; j < n; ++j) out[(i + r) * n + j] = row[j] * inverse;
      }
    }
  });
}

}  // namespace

template <class T>
bool divide_and_conquer(int64_t n, T* a, T* values) {
  int64_t ld = padded<T>(n);
  if (ld % 64 == 0) ld += padded<T>(1);  // rows that do not share the sets of a cache
  Buffer<T> q((n + 8) * ld), z(n * ld), numbers(3 * n);
  T *const d = numbers.get(), *const e = d + n, *const tau = e + n;
  int exponent = 0;
  std::frexp(largest_magnitude(a, n * n), &exponent);
  const T scale = std::ldexp(T(1), -exponent / 2), rest = std::ldexp(T(1), exponent / 2 - exponent);
  for_rows(n, n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t j = 0; j < n; ++j) q[i * ld + j] = a[i * n + j] * scale * rest;
      std::fill(q.get() + i * ld + n, q.get() + (i + 1) * ld, T(0));
      std::fill_n(z.get() + i * ld, ld, T(0));
    }
  });
  std::fill_n(q.get() + n * ld, 8 * ld, T(0));  // multiply_lower reads past the last row
  tridiagonalize(n, ld, q.get(), d, e, tau);

  Buffer<double> wide(2 * n);
  double *const eigenvalues = wide.get(), *const between = eigenvalues + n;
  std::copy_n(d, n, eigenvalues);
  std::copy_n(e + 1, n - 1, between);
  between[n - 1] = 0;
  if (!solve_tridiagonal(n, eigenvalues, between, z.get(), ld)) return false;
  Buffer<int64_t> order(n);
  std::iota(order.get(), order.get() + n, int64_t{0});
  std::sort(order.get(), order.get() + n, [&](int64_t i, int64_t j) {
    return eigenvalues[i] != eigenvalues[j] ? eigenvalues[i] < eigenvalues[j] : i < j;
  });
  const T back = std::ldexp(T(1), exponent / 2),
          rest_back = std::ldexp(T(1), exponent - exponent / 2);
  for (int64_t j = 0; j < n; ++j) {
    values[j] = static_cast<T>(eigenvalues[order[j]]) * back * rest_back;
  }
  multiply_by_q(n, ld, q.get(), tau, z.get(), order.get(), a);
  return true;
}

template bool divide_and_conquer(int64_t, float*, float*);
template bool divide_and_conquer(int64_t, double*, double*);

}  // namespace fastwhiten::cpu
