// The inner kernels, compiled once per instruction set and chosen at run time by what the processor
// has. kernels_impl.h is the one source of all of them.
#pragma once

#include <cstdint>

#include "../common/layout.h"
#include "../common/stable.h"

namespace fastwhiten::cpu {

enum class Scale {
  kNone,    // x - shift
  kResult,  // (x - shift) * scale_n
  kShift,   // x - shift * scale_n
};

enum class Into {  // what a product does with the matrix that it is written to
  kOver,
  kAdd,
  kPast,  // over it, past the caches: for what nobody reads soon; spares reading what is
          // overwritten
};

// What is read next, fetched into the L2 cache while products run: equal runs of memory, of one or
// two tensors. Counted down by every one of the products that share it.
struct Ahead {
  const char* from[2];                    // null: none
  int64_t runs, lines, stride, products;  // lines: of 64 bytes in a run; stride: in bytes
  int64_t line;                           // the next one of this run
};

// Vectors are at most 64 bytes: a right factor's rows are padded to a multiple of this many
// elements.
template <class T>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t lanes = 64 / sizeof(T);
  return (n + lanes - 1) / lanes * lanes;
}

template <class T>
struct ProductKernels {
  bool fused;  // built on fused multiply-adds: as fast as a BLAS
  // c [m, n] = (into: or +=) a b: element (i, l) of a at a[i * a_row + l * a_k], b [k, n] of row
  // stride ldb whose rows are readable up to padded(n). lower: only the lower triangle of c is
  // needed (m = n), the rest may be left as it was. Sums run over l in order, so no bit depends on
  // the caller's blocking of m and n.
  void (*multiply)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_k,
                   const T* b, int64_t ldb, T* c, int64_t ldc, Into into, bool lower);
  void (*multiply_fetching)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_k,
                            const T* b, int64_t ldb, T* c, int64_t ldc, Into into, bool lower,
                            Ahead& ahead);
  // to [columns, rows] of row stride ld_to = the transpose of from [rows, columns] of row stride
  // ld_from.
  void (*transpose)(int64_t rows, int64_t columns, const T* from, int64_t ld_from, T* to,
                    int64_t ld_to);
  // sums [n] += the rows of a [m, n] of row stride ld.
  void (*add_rows)(int64_t m, int64_t n, const T* a, int64_t ld, T* sums);
};

template <class In, class T>
struct TileKernels {
  // buffer = the tile rows [r0, r0 + m) of group g, shifted. shift [D] (of this group), scale [M]
  // or null. rows: buffer [m, D] of row stride ld; planes: buffer [D, m] of row stride ld.
  void (*load)(const Layout& s, Scale mode, const In* x, int64_t g, int64_t r0, int64_t m,
               const T* shift, const T* scale, T* buffer, int64_t ld);
  // load with Scale::kResult, as rows [m, D] of row stride ld whatever the layout.
  void (*load_rows)(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
                    const T* scale, T* buffer, int64_t ld);
  // The inverse of load, converted to the input's dtype.
  void (*store)(const Layout& s, const T* buffer, int64_t ld, int64_t g, int64_t r0, int64_t m,
                In* out);
  // sums [D] += sum over the tile rows of p_n (x_n - shift); shift [D], p [M] or null for 1.
  void (*add_sums)(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
                   const T* p, T* sums);
};

// What the stack arrays of the inner loops hold: reflectors of a panel, the order of a leaf,
// matrices that are solved at once.
constexpr int64_t kMostPairs = 32, kLargestLeaf = 48, kMostAtOnce = 4;
// Two matrices at once take as long as one after the other.
constexpr int64_t kLeastAtOnce = 3;

template <class T>
struct EigenKernels {
  // The orders up to which QL (solve) and divide_and_conquer (divide.h) serve: as accurate as
  // syevd, and the fastest.
  int64_t most_ql, most_divided;
  // How many matrices solve takes at once, and how many elements of scratch memory for that.
  int64_t at_once;
  int64_t (*work_size)(int64_t n, int64_t count);
  // a [count, n, n] symmetric and finite -> eigenvectors as rows, values [count, n] ascending.
  // solved [count]: false where it did not converge. The same bits alone and with others.
  void (*solve)(int64_t n, int64_t count, T* a, T* values, T* work, bool* solved);

  // The rest is of divide_and_conquer.
  // row [k + 1] of a += the pairs [2 pairs, ld], sum_r right[r][k] left[r]; then d = row[k], and
  // row [k] becomes the reflector that makes it (0, ..., 0, e); zeros up to padded(k + 1). Returns
  // tau.
  T (*next_reflector)(int64_t k, int64_t pairs, int64_t ld, const T* left, const T* right, T* row,
                      T* d, T* e);
  // p += a v with a symmetric, for what the rows [first, last) of its lower triangle add; first is
  // a multiple of 16. Blocks of 64 bytes on the diagonal are read whole; rows and elements of v up
  // to a multiple of 64 bytes, where v is zero.
  void (*multiply_lower)(int64_t first, int64_t last, int64_t ld, const T* a, const T* v, T* p);
  // p [k] = a v of the matrix before the pairs' update -> the next pair: v, w in left, -w, -v in
  // right, with H a H = a - v w^T - w v^T. p is overwritten.
  void (*next_pair)(int64_t k, int64_t pairs, int64_t ld, const T* v, T tau, T* p, T* left,
                    T* right);
  // The eigenvalues d [n] of a tridiagonal matrix of order n <= kLargestLeaf, eigenvectors in rows.
  bool (*solve_leaf)(int64_t n, double* d, double* e, T* rows, int64_t ld);
  // Root k of 1 + sum_i w_i / (d_i - x), d [n] ascending, w [n] > 0: x = base + tau, base the pole
  // closest to it. Poles up to padded(n) are far away, with w = 0. False: it did not converge.
  bool (*secular_root)(int64_t k, int64_t n, const double* d, const double* w, double* base,
                       double* tau);
  // The |z_i|, first <= i < last, of which base + tau are the exact roots (Gu and Eisenstat).
  void (*secular_weights)(int64_t first, int64_t last, int64_t n, const double* d,
                          const double* base, const double* tau, double* z);
  // out [n] = z_i / (d_i - x), of norm 1; scratch [padded(n)].
  void (*secular_vector)(int64_t n, const double* d, const double* z, double base, double tau,
                         double* scratch, T* out);
};

template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const EigenKernels<T>& eigen_kernels();
template <class In, class T>
const TileKernels<In, T>& tile_kernels();

// Who multiplies large matrices and decomposes small ones: the faster, as measured, unless
// FASTWHITEN_CPU_LIBRARY (read once) asks for BLAS and LAPACK (1) or for us (0), to compare the two
// (benchmarks/choices.py).
enum class Choice { kFaster, kOurs, kLibrary };
Choice choice();

enum class Solver { kQl, kDivide, kLibrary };
// Who solves an eigenproblem of order n.
template <class T>
Solver eigen_solver(int64_t n);

// "avx512", "avx2" or "baseline". FASTWHITEN_CPU_CAPABILITY (read once) asks for a lesser one.
const char* cpu_capability();

// First element of (row r, channel c) in memory.
inline int64_t offset(const Layout& s, int64_t r, int64_t c) {
  if (!s.planes()) return r * s.channels + c;
  return (r / s.length * s.channels + c) * s.length + r % s.length;
}

}  // namespace fastwhiten::cpu

// Every pair of input and accumulation type.
#define FASTWHITEN_FOR_TILE_TYPES(F) \
  F(Half, float)                     \
  F(BFloat16, float)                 \
  F(float, float)                    \
  F(Half, double)                    \
  F(BFloat16, double)                \
  F(float, double)                   \
  F(double, double)
