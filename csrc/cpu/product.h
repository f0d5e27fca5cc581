// result = tile * B for the tiles of apply and backward_apply, written in place where it can be.
#pragma once

#include <type_traits>

#include "tiles.h"
#include "workspace.h"

namespace fastwhiten::cpu {

// out (the tile rows [r0, r0 + m) of group g) = tile B (+ beta).
// rows: tile [m, K] of row stride ld; planes: tile [K, m] of row stride ld. B [K, D]; beta [D] or
// null.
template <class Out, class T>
void multiply_tile(const Layout& s, const Plan& plan, const T* tile, int64_t ld, int64_t K,
                   const T* B, int64_t g, int64_t r0, int64_t m, const T* beta, Out* out) {
  const int64_t D = s.width;
  constexpr int64_t kShortestProduct = 32;  // images shorter than this are written through a buffer
  if constexpr (std::is_same_v<Out, T>) {
    if (beta == nullptr && !s.planes()) {
      gemm(false, false, m, D, K, T(1), tile, ld, B, D, T(0), out + offset(s, r0, g * D),
           s.channels);
      return;
    }
    if (beta == nullptr && s.length >= kShortestProduct) {
      for_segments(s, r0, m, [&](int64_t r, int64_t length) {
        gemm(true, false, D, length, K, T(1), B, D, tile + (r - r0), ld, T(0),
             out + offset(s, r, g * D), s.length);
      });
      return;
    }
  }
  Buffer<T> result(D * m);
  const int64_t ld_result = s.planes() ? m : D;
  if (s.planes()) {
    gemm(true, false, D, m, K, T(1), B, D, tile, ld, T(0), result.get(), m);
  } else {
    gemm(false, false, m, D, K, T(1), tile, ld, B, D, T(0), result.get(), D);
  }
  for_pieces(plan.wide, r0, m, [&](int64_t r, int64_t length, int64_t at) {
    store_tile(s, s.planes() ? result.get() + at : result.get() + at * D, ld_result, g, r, length,
               beta, out);
  });
}

}  // namespace fastwhiten::cpu
