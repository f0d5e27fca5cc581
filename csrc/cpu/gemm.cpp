// c [m, n] (+)= alpha op(a) op(b).
//
// op(b) is packed into panels of kColumns columns, cut into slices of kDepth rows that stay in the
// L1 cache (24 KiB) while up to kMostRows rows of op(a), which stay in the L2 cache, run along
// them. A block of c belongs to one thread, which adds its slices in order: so no bit depends on
// the number of threads. MKL takes AVX-512 on Intel's processors alone: forward and backward of
// (256, 2048) take .62 of the time with MKL's products on an AMD EPYC with AVX-512, 1.03 of it
// where MKL is made to believe that it is an Intel, and .93 with AVX2 (benchmarks/choices.py).
#include "gemm.h"

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kDepth = 128;
constexpr int64_t kMostRows = 96;
constexpr int64_t kRowStep =
    24;  // a multiple of the rows of every instruction set's block: 8, 6, 4
constexpr int64_t kPackedElements = 1 << 20;

template <class T>
constexpr int64_t kColumns = 192 / sizeof(T);  // three vectors of 64 bytes

// Slices of one panel: rows [0, k) of op(b) from b, columns [0, width), times alpha.
template <class T>
void pack_panel(bool transposed, int64_t width, int64_t k, T alpha, const T* b, int64_t ldb,
                T* to) {
  constexpr int64_t columns = kColumns<T>;
  if (transposed) {
    product_kernels<T>().transpose(width, k, b, ldb, to, columns);
  } else {
    for (int64_t l = 0; l < k; ++l) std::copy_n(b + l * ldb, width, to + l * columns);
  }
  for (int64_t l = 0; width < columns && l < k; ++l) {
    std::fill(to + l * columns + width, to + (l + 1) * columns, T(0));
  }
  for (int64_t i = 0; alpha != T(1) && i < k * columns; ++i) to[i] *= alpha;
}

// f(unit) for every unit of work, by all threads unless a team is at work already.
template <class F>
void for_units(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, [&f](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) f(u);
  });
}

}  // namespace

template <class T>
bool prefers_blocked_gemm(int64_t m, int64_t n, int64_t k) {
  // Below, waking the team twice costs more than the faster inner loop gains (128 x 512 x 128 took
  // 160 us, MKL's one region 130). Thin ones are panels, which the stages multiply themselves.
  constexpr double kFlops = 1e8;
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const bool ours =
      choice() == Choice::kFaster ? product_kernels<T>().fused : choice() == Choice::kOurs;
  return ours && flops >= kFlops && std::min({m, n, k}) >= 64;
}

template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                  const T* a, int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc,
                  bool lower) {
  constexpr int64_t columns = kColumns<T>;
  const int64_t panels = (n + columns - 1) / columns;
  // Blocks of rows as equal as can be: threads get the same number of them.
  const int64_t parts = (m + kMostRows - 1) / kMostRows;
  const int64_t rows_of_block = ((m + parts - 1) / parts + kRowStep - 1) / kRowStep * kRowStep;
  const int64_t blocks = (m + rows_of_block - 1) / rows_of_block;
  const int64_t a_row = transpose_a ? 1 : lda, a_k = transpose_a ? lda : 1;
  const int64_t deep =
      std::min(k, std::max(kDepth, kPackedElements / (panels * columns) / kDepth * kDepth));
  Buffer<T> packed(panels * deep * columns);  // [panels, deep, columns]
  const auto multiply = product_kernels<T>().multiply;
  for (int64_t k0 = 0; k0 < k; k0 += deep) {
    const int64_t depth = std::min(deep, k - k0);
    for_units(panels, [&](int64_t p) {
      const int64_t j = p * columns;
      const T* from = transpose_b ? b + j * ldb + k0 : b + k0 * ldb + j;
      pack_panel(transpose_b, std::min(columns, n - j), depth, alpha, from, ldb,
                 packed.get() + p * deep * columns);
    });
    for_units(blocks * panels, [&](int64_t u) {
      const int64_t i = u / panels * rows_of_block, p = u % panels, j = p * columns;
      const int64_t rows = std::min(rows_of_block, m - i), width = std::min(columns, n - j);
      if (lower && i + rows <= j) return;
      for (int64_t l = 0; l < depth; l += kDepth) {
        multiply(rows, width, std::min(kDepth, depth - l), a + i * a_row + (k0 + l) * a_k, a_row,
                 a_k, packed.get() + (p * deep + l) * columns, columns, c + i * ldc + j, ldc,
                 add || k0 + l > 0 ? Into::kAdd : Into::kOver, false);
      }
    });
  }
}

#define FASTWHITEN_INSTANTIATE(T)                                                            \
  template bool prefers_blocked_gemm<T>(int64_t, int64_t, int64_t);                          \
  template void blocked_gemm<T>(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, \
                                const T*, int64_t, bool, T*, int64_t, bool);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
