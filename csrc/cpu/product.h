// Products with panels: by the inner kernels, or by BLAS when the group is wide.
#pragma once

#include <type_traits>

#include "tiles.h"

namespace fastwhiten::cpu {

// A result this large has left the caches before anybody reads it.
constexpr int64_t kPastCaches = int64_t{8} << 20;

// out (the rows [r0, r0 + m) of group g) = panel B.
// rows: panel [m, K] of row stride ld; planes: panel [K, m]. B [K, D] of row stride padded(D).
template <class Out, class T>
void multiply_panel(const Layout& s, const Plan& plan, const T* panel, int64_t ld, int64_t K,
                    const T* B, int64_t g, int64_t r0, int64_t m, Out* out, Ahead& ahead) {
  const int64_t D = s.width, ldb = padded<T>(D);
  const auto product = [&](T* c, int64_t ldc, const T* from, int64_t length, Into into) {
    const auto multiply = product_kernels<T>().multiply_fetching;  // length: rows of the result
    if (plan.wide && s.planes()) {
      gemm(true, false, D, length, K, T(1), B, ldb, from, ld, T(0), c, ldc);
    } else if (plan.wide) {
      gemm(false, false, length, D, K, T(1), from, ld, B, ldb, T(0), c, ldc);
    } else if (s.planes()) {
      multiply(D, length, K, B, 1, ldb, from, ld, c, ldc, into, false, ahead);
    } else {
      multiply(length, D, K, from, ld, 1, B, ldb, c, ldc, into, false, ahead);
    }
  };
  if constexpr (std::is_same_v<Out, T>) {
    // Past the caches: 15 to 25 % of apply on the (64, 64, 32, 32) map.
    const bool large = s.numel() * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
    const Into into = large ? Into::kPast : Into::kOver;
    ahead.products = (r0 + m - 1) / s.length - r0 / s.length + 1;
    if (!s.planes()) return product(out + offset(s, r0, g * D), s.channels, panel, m, into);
    for_segments(s, r0, m, [&](int64_t r, int64_t length) {
      product(out + offset(s, r, g * D), s.length, panel + (r - r0), length, into);
    });
  } else {
    const int64_t ld_result = s.planes() ? round_up(m, 16) + 16 : D;
    ahead.products = 1;
    Buffer<T> result(s.planes() ? D * ld_result : D * m);
    product(result.get(), ld_result, panel, m, Into::kOver);
    const auto store = tile_kernels<Out, T>().store;
    for_pieces(plan.wide, r0, m, [&](int64_t r, int64_t length, int64_t at) {
      store(s, result.get() + (s.planes() ? at : at * D), ld_result, g, r, length, out);
    });
  }
}

// c [D, D] = (or +=, add) a b, element (i, l) of a [D, m] at a[i * a_row + l * a_k], b [m, D] of
// row stride ldb readable up to padded(D). Long sums are made of pieces: a float32 sum of a
// thousand products carries several times the rounding error of four sums of 256.
template <class T>
void add_narrow_product(int64_t D, int64_t m, const T* a, int64_t a_row, int64_t a_k, const T* b,
                        int64_t ldb, T* c, bool add, bool lower, Ahead& ahead) {
  constexpr int64_t kPiece = 256;
  ahead.products = (m + kPiece - 1) / kPiece;
  for (int64_t k = 0; k < m; k += kPiece) {
    product_kernels<T>().multiply_fetching(D, D, std::min(kPiece, m - k), a + k * a_k, a_row, a_k,
                                           b + k * ldb, ldb, c, D,
                                           add || k > 0 ? Into::kAdd : Into::kOver, lower, ahead);
  }
}

// c [D, D] = (or +=, add) a^T b for rows: a [m, D] of row stride lda, b [m, D] of row stride ldb
// readable up to padded(D). lower: a = b, and only the lower triangle counts.
template <class T>
void add_rows_product(bool wide, int64_t D, int64_t m, const T* a, int64_t lda, const T* b,
                      int64_t ldb, T* c, bool add, bool lower, Ahead& ahead) {
  if (!wide) return add_narrow_product(D, m, a, 1, lda, b, ldb, c, add, lower, ahead);
  const T keep = add ? T(1) : T(0);
  if (lower) return gemm_symmetric(true, D, m, T(1), a, lda, keep, c, D);
  gemm(true, false, D, D, m, T(1), a, lda, b, ldb, keep, c, D);
}

}  // namespace fastwhiten::cpu
