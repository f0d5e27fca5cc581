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

template <class T>
struct EigenKernels {
  int64_t largest;  // the order up to which solve serves: is as accurate as syevd, and faster
  // How many elements of scratch memory solve wants for order n.
  int64_t (*work_size)(int64_t n);
  // a [n, n] symmetric and finite -> its eigenvectors as rows, values [n] ascending. False when it
  // did not converge.
  bool (*solve)(int64_t n, T* a, T* values, T* work);
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

// The order up to which our eigensolver is taken.
template <class T>
int64_t largest_eigen();

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
