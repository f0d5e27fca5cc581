// Products of matrices of at most N x N in shared memory, by one block of 4 N threads.
//
// A thread holds N / 16 rows and four columns of the result. Arrays have rows of N + 4 numbers: a
// multiple of four, so that four numbers are one load, and no two rows in a row of a tile meet in
// a bank. Of what a factor does not fill, zeros: no loop asks for a width. Per 4 N^2
// multiplications of a block a thread loads its share of two rows: 2 loads of 16 bytes for every 16
// of them at N =
// 64. Every element is one sum, in order.
#pragma once

#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

template <int N>
constexpr int kBlockThreads = 4 * N;
template <int N>
constexpr int kRowStride = N + 4;

template <class T, int N>
struct BlockTile {
  static constexpr int kRows = N / 16;
  T v[kRows][4];

  __device__ __forceinline__ BlockTile() {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) v[u][w] = T(0);
    }
  }
  // The first row, and the first of four neighbouring columns.
  __device__ static __forceinline__ int row() {
    return static_cast<int>(threadIdx.x) / (N / 4) * kRows;
  }
  __device__ static __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % (N / 4) * 4;
  }
  // Where columns lie apart, as add_transposed leaves them: column w of the four.
  __device__ static __forceinline__ int apart(int w) {
    return static_cast<int>(threadIdx.x) % (N / 4) + N / 4 * w;
  }
  // f(row, column, value) for every element.
  template <class F>
  __device__ __forceinline__ void each(const F& f) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) f(row() + u, column() + w, v[u][w]);
    }
  }
  template <class F>
  __device__ __forceinline__ void each_apart(const F& f) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) f(row() + u, apart(w), v[u][w]);
    }
  }
  __device__ __forceinline__ void store(const SharedArray<T>& to) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      store4(to, (row() + u) * kRowStride<N> + column(), {{v[u][0], v[u][1], v[u][2], v[u][3]}});
    }
  }
};

// Elements i, ..., i + kCount - 1 of shared memory, as wide as they allow.
template <int kCount, class T>
__device__ __forceinline__ void load_many(const SharedArray<T>& a, int i, T (&to)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int n = 0; n < kCount; n += 4) {
      const Four<T> four = load4(a, i + n);
#pragma unroll
      for (int w = 0; w < 4; ++w) to[n + w] = four.v[w];
    }
  } else {
#pragma unroll
    for (int n = 0; n < kCount; ++n) to[n] = a[i + n];
  }
}

// tile += sum_k left(k, row) right(k, column). left(k, T (&)[kRows]) gives the rows of the tile,
// right(k) its four columns.
template <class T, int N, class Left, class Right>
__device__ __forceinline__ void add_product(BlockTile<T, N>& tile, int depth, const Left& left,
                                            const Right& right) {
#pragma unroll(N == 128 ? 1 : 4)
  for (int k = 0; k < depth; ++k) {
    T row[BlockTile<T, N>::kRows];
    left(k, row);
    const Four<T> four = right(k);
#pragma unroll
    for (int u = 0; u < BlockTile<T, N>::kRows; ++u) {
#pragma unroll
      for (int w = 0; w < 4; ++w) tile.v[u][w] += row[u] * four.v[w];
    }
  }
}

// tile += a^T b: sums over the rows of both.
template <class T, int N>
__device__ __forceinline__ void add_over_rows(BlockTile<T, N>& tile, int depth,
                                              const SharedArray<T>& a, const SharedArray<T>& b,
                                              int from = 0) {
  using Tile = BlockTile<T, N>;
  add_product(
      tile, depth,
      [&](int k, T(&row)[Tile::kRows]) {
        load_many(a, (from + k) * kRowStride<N> + Tile::row(), row);
      },
      [&](int k) { return load4(b, (from + k) * kRowStride<N> + Tile::column()); });
}

// tile += a b: right(k) the four columns of row k of b, left(row, k, T (&)[4]) numbers of a row
// of a.
template <class T, int N, class Left, class Right>
__device__ __forceinline__ void add_by_rows(BlockTile<T, N>& tile, const Left& left,
                                            const Right& right) {
#pragma unroll(N == 128 ? 1 : 2)
  for (int k = 0; k < N; k += 4) {
    Four<T> rows[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) rows[n] = right(k + n);
#pragma unroll
    for (int u = 0; u < BlockTile<T, N>::kRows; ++u) {
      T own[4];
      left(BlockTile<T, N>::row() + u, k, own);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int w = 0; w < 4; ++w) tile.v[u][w] += own[n] * rows[n].v[w];
      }
    }
  }
}

// tile += a b^T, of columns that lie apart: neighbouring threads read neighbouring rows of b.
template <class T, int N, class Left>
__device__ __forceinline__ void add_transposed(BlockTile<T, N>& tile, const Left& left,
                                               const SharedArray<T>& b) {
#pragma unroll(N == 128 ? 1 : 2)
  for (int k = 0; k < N; k += 4) {
    T rows[4][4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      load_many(b, BlockTile<T, N>::apart(w) * kRowStride<N> + k, rows[w]);
    }
#pragma unroll
    for (int u = 0; u < BlockTile<T, N>::kRows; ++u) {
      T own[4];
      left(BlockTile<T, N>::row() + u, k, own);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
#pragma unroll
        for (int n = 0; n < 4; ++n) tile.v[u][w] += own[n] * rows[w][n];
      }
    }
  }
}

// Left and right factors of these, from shared memory: rows of a, and the tile's columns of b.
template <int N, class T>
__device__ __forceinline__ auto rows_of(const SharedArray<T>& a) {
  return [=](int row, int k, auto& to) { load_many(a, row * kRowStride<N> + k, to); };
}
template <int N, class T>
__device__ __forceinline__ auto columns_of(const SharedArray<T>& b) {
  return [=](int k) { return load4(b, k * kRowStride<N> + BlockTile<T, N>::column()); };
}

}  // namespace cuda
}  // namespace fastwhiten
