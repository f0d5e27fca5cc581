// Products of rows with matrices where groups share a tile: D <= 32.
//
// One block per 64 rows and up to 64 channels, of whole groups; a thread owns four rows by four
// channels. Every channel multiplies the rows of its own group's channels only: groups are not
// padded with zeros to one another, for 0 * NaN of a neighbour would be NaN.
// Bytes: x, y and the matrices once. Determinism: every element is one sum, in order. Shared
// memory: two slabs for x and one for the matrices, 24 KiB (float).
#pragma once

#include "row_products.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
struct NarrowShared {
  static constexpr int64_t kBytes = 3 * kSlab * sizeof(T);
  __device__ explicit NarrowShared(char* arena)
      : x(arena, 0, 2 * kSlab), matrices(arena, 2 * kSlab * sizeof(T), kSlab) {}
  SharedArray<T> x, matrices;  // [64 channels, 64 rows], [D, 64 channels]
};

// What a thread owns of a tile: channels channel() + u, rows row() + w.
template <class T>
struct NarrowSums {
  T v[4][4] = {};
  static __device__ __forceinline__ int channel() { return static_cast<int>(threadIdx.x) / 16 * 4; }
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % 16 * 4; }
};

// sums += a term, as in RowProduct.
template <int kTerm, class In, class T, class Terms>
__device__ __forceinline__ void narrow_product(const Layout& s, const RowTile& tile,
                                               const NarrowShared<T>& at, const Terms& terms,
                                               NarrowSums<T>& sums) {
  const int D = static_cast<int>(s.width), thread = static_cast<int>(threadIdx.x);
  const In* const rows = terms.rows(kTerm);
  const T* const matrix = terms.matrix(kTerm) + tile.channel * D;
  __syncthreads();  // what was here before is read
  // Threads side by side are so in memory: rows of a plane, channels of a row.
  if (s.planes()) {
    const int r = thread % kTile;
    const RowPlace<true> place(s, tile.row + r);
    const T p = r < tile.rows ? terms.weight(tile.row + r) : T(0);
#pragma unroll 4
    for (int c = thread / kTile; c < kTile; c += kThreads / kTile) {
      const bool inside = r < tile.rows && c < tile.channels;
      const int64_t channel = tile.channel + (c < tile.channels ? c : 0);
      const T value = inside ? convert<T>(rows[place.offset + channel * s.length]) : T(0);
      at.x[slab_place(c, r)] = inside ? terms.template numbers<kTerm>(channel)(value, p) : T(0);
    }
  } else {
    const int c = thread % kTile;
    const int64_t channel = tile.channel + (c < tile.channels ? c : 0);
    const auto number = terms.template numbers<kTerm>(channel);
#pragma unroll 4
    for (int r = thread / kTile; r < kTile; r += kThreads / kTile) {
      const bool inside = r < tile.rows && c < tile.channels;
      const int64_t row = tile.row + r;
      at.x[slab_place(c, r)] =
          inside ? number(convert<T>(rows[row * s.channels + channel]), terms.weight(row)) : T(0);
    }
  }
  const int own = thread % kTile, group = own / D * D;  // its first channel
#pragma unroll 4
  for (int k = thread / kTile; k < D; k += kThreads / kTile) {
    const int place = Terms::kTransposed[kTerm] ? own * D + k : (group + k) * D + own - group;
    at.matrices[slab_place(k, own)] = own < tile.channels ? matrix[place] : T(0);
  }
  __syncthreads();
  const int channel = NarrowSums<T>::channel(), row = NarrowSums<T>::row();
  int first[4];  // channel of the group of each
#pragma unroll
  for (int u = 0; u < 4; ++u) first[u] = channel + u < tile.channels ? (channel + u) / D * D : 0;
  for (int k = 0; k < D; ++k) {
    const Four<T> w = load4(at.matrices, slab_place(k, channel));
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const Four<T> x = load4(at.x, slab_place(first[u] + k, row));
#pragma unroll
      for (int n = 0; n < 4; ++n) sums.v[u][n] += x.v[n] * w.v[u];
    }
  }
}

// A tile of the product, stored: as in row_products.cuh.
template <bool kPlanes, class T, class Terms>
__device__ __forceinline__ void store_narrow(const NarrowShared<T>& at, const Terms& terms) {
  using In = typename Terms::Input;
  const Layout s = terms.s;
  const RowTile tile = row_tile(terms);
  NarrowSums<T> sums;
  narrow_product<0, In>(s, tile, at, terms, sums);
  if constexpr (Terms::kCount > 1) narrow_product<1, In>(s, tile, at, terms, sums);
  const int channel = NarrowSums<T>::channel(), row = NarrowSums<T>::row();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = row + (kPlanes ? 0 : i), c = channel + (kPlanes ? i : 0);
    Four<In> out;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int own = c + (kPlanes ? 0 : n);
      const auto finish = terms.finish(tile.channel + (own < tile.channels ? own : 0));
      out.v[n] = round_to<In>(finish(kPlanes ? sums.v[i][n] : sums.v[n][i]));
    }
    const RowPlace<kPlanes> place(s, tile.row + r);
    store_four<kPlanes>(s, tile, terms.vectors, place.left, r, c, out,
                        terms.to + place.offset + (tile.channel + c) * s.length);
  }
}

}  // namespace cuda
}  // namespace fastwhiten
