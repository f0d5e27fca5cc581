// From an eigensystem in a block's shared memory to its whitening matrix: factor.cuh's formulas.
//
// The zca matrix is a product of U diag(l^-1/4) with its own transpose: neither order nor signs
// matter, and W is symmetric to the last bit. Every element is one sum, in order.
#pragma once

#include "jacobi_block.cuh"

namespace fastwhiten {
namespace cuda {

// From V^T in the basis and d in the views: l = (1 - rho) d + rho sum(d) / D + eps, U, and W of a
// zca (0) or pca (1), in global memory and, where there is room beside the basis, in the views'
// matrix. Barriers before, between and after.
template <class T, int N>
__device__ __forceinline__ void block_whitening(const EigenShared<T, N>& s, int64_t kind,
                                                bool shrinks, T rho, T eps, T* eigenvalues,
                                                T* basis, T* matrix) {
  constexpr bool kBoth = EigenShared<T, N>::kBoth;
  using Tile = BlockTile<T, N>;
  const Place me = place();
  const int D = s.D, k = static_cast<int>(threadIdx.x);
  const Scale<T> scale = s.scale();
  rank_rows(s);
  T keep = 1, shift = eps;
  if (shrinks) {
    T sum = 0;
    for (int i = me.lane; i < D; i += 32) sum += scale.undo(s.values[i]);
    keep = 1 - rho;
    shift = rho * warp_sum(sum) / static_cast<T>(D) + eps;
  }
  __syncthreads();  // all have read d
  if (k < D) {
    const T d = scale.undo(s.values[k]);
    s.values[k] = keep * (d < T(0) ? T(0) : d) + shift;  // NaN stays NaN
  }
  __syncthreads();
  each_component(s, [&](int r, int c, int row, T entry) {
    basis[r * D + c] = entry;
    const T l = s.values[row];
    if (r == 0) eigenvalues[c] = l;
    if (kind == 0) return;
    const T scaled = entry * (1 / sqrt(l));
    matrix[r * D + c] = scaled;
    if constexpr (kBoth) s.matrix[r * kRowStride<N> + c] = scaled;
  });
  __syncthreads();
  if (kind != 0) return;
  fill_rows<N>(s.basis, [&](int row, int, int at) {
    return row < D ? static_cast<T>(s.basis[at]) * sqrt(1 / sqrt(static_cast<T>(s.values[row])))
                   : T(0);
  });
  __syncthreads();
  Tile tile;
  add_over_rows(tile, D, s.basis, s.basis);
  if constexpr (kBoth) tile.store(s.matrix);
  tile.each([&](int i, int j, T sum) {
    if (i < D && j < D) matrix[i * D + j] = sum;
  });
  __syncthreads();
}

}  // namespace cuda
}  // namespace fastwhiten
