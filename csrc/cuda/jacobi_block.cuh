// What the eigensolvers of a block share: views into shared memory, loading, and the finish.
//
// The finish turns an almost orthogonal V into eigenvectors: one Newton-Schulz step
// V (3 I - V^T V) / 2 (rotations lose orthogonality by one rounding each), Rayleigh quotients
// l_k = v_k^T A v_k with the original A, ascending order, signs made unique.
// Products are made by warps, tiles of a few rows and all columns, K terms in order; 2 D^3 flops
// each.
#pragma once

#include "jacobi.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int kTwoSidedUpTo = 64, kOneSidedUpTo = 128;

// An even number of rows gives the tournament a player that never moves. An odd stride
// spreads a column over the banks; one of 16 more than a multiple of 32 keeps half a warp that
// reads one row apart from the other half that reads the next.
__host__ __device__ constexpr int eigen_rows(int D) { return D + D % 2; }
__host__ __device__ constexpr int eigen_stride(int D) {
  return D <= kTwoSidedUpTo ? eigen_rows(D) + 1 : (D + 15) / 32 * 32 + 16;
}

// Small arrays come first, as large as they ever get: places known to the compiler cost no
// register.
template <class T>
struct EigenLayout {
  static constexpr int64_t kNumber = static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kPartial = 0;
  static constexpr int64_t kValues = kPartial + 32 * kNumber;
  static constexpr int64_t kSigns = kValues + kOneSidedUpTo * kNumber;
  static constexpr int64_t kOrder = kSigns + kOneSidedUpTo * kNumber;
  static constexpr int64_t kRotations = kOrder + kOneSidedUpTo * 4;
  static constexpr int64_t kBasis = kRotations + 3 * kOneSidedUpTo * kNumber;
};

template <class T>
__host__ __device__ constexpr int64_t eigen_shared_bytes(int D, bool both) {
  return EigenLayout<T>::kBasis +
         int64_t{both ? 2 : 1} * eigen_rows(D) * eigen_stride(D) * static_cast<int64_t>(sizeof(T));
}

template <class T>
struct EigenShared {
  using Number = T;
  using At = EigenLayout<T>;
  // From byte `offset` (a multiple of 16) of the arena on; `both`: the matrix has a place, too.
  __device__ EigenShared(char* arena, int64_t offset, int size, bool both)
      : D(size),
        stride(eigen_stride(size)),
        partial(arena, offset + At::kPartial, 32),
        values(arena, offset + At::kValues, size),
        signs(arena, offset + At::kSigns, size),
        order(arena, offset + At::kOrder, size),
        rotations(arena, offset + At::kRotations, 3 * eigen_rows(size)),
        basis(arena, offset + At::kBasis, eigen_rows(size) * stride),
        matrix(arena, offset + eigen_shared_bytes<T>(size, false),
               both ? eigen_rows(size) * stride : 0) {}

  int D, stride;
  SharedArray<T> partial;    // [32] one number a warp
  SharedArray<T> values;     // [D] in the order of the basis, scaled
  SharedArray<T> signs;      // [D] in the order of the basis
  SharedArray<int> order;    // [D] rows of the basis by ascending value
  SharedArray<T> rotations;  // [2, 3, pairs]: tau, sine, tangent of two rounds
  SharedArray<T> basis;      // V^T [rows, stride]: eigenvector k is row k
  SharedArray<T> matrix;     // [rows, stride], or nothing
};

// The largest |a_ij| of the lower triangle; infinity if one is not finite. With a barrier inside.
template <class T>
__device__ T largest_entry(int D, const T* a, const SharedArray<T>& partial) {
  const Place me = place();
  T largest = 0;
  for (int i = me.warp; i < D; i += me.warps) {
    for (int j = me.lane; j <= i; j += 32) {
      const T size = finite_magnitude(a[i * D + j]);
      largest = size > largest ? size : largest;
    }
  }
  largest = warp_max(largest);
  if (me.lane == 0) partial[me.warp] = largest;
  __syncthreads();
  for (int w = 0; w < me.warps; ++w) {
    const T other = partial[w];
    largest = other > largest ? other : largest;
  }
  return largest;
}

// Both triangles of a [D, D], scaled, into target [.., stride]. No barrier.
template <class T, class Target>
__device__ void load_symmetric(int D, const T* a, const Scale<T>& scale, const Target& target,
                               int stride) {
  const Place me = place();
  for (int i = me.warp; i < D; i += me.warps) {
    for (int j = me.lane; j <= i; j += 32) {
      const T entry = scale.apply(a[i * D + j]);
      target[i * stride + j] = entry;
      target[j * stride + i] = entry;
    }
  }
}

// Rows of a tile: with four chunks of columns, more would exceed the 64 registers of 1024 threads.
template <int kChunks>
constexpr int kTileRows = kChunks == 4 ? 2 : 4;

template <class T, int kChunks>
struct Tile {
  T sum[kTileRows<kChunks>][kChunks];  // rows of the tile, columns lane + 32 chunk
};

// sum_k left(row, k) right(k, column), k < depth, for the rows of a tile from `first` on and all of
// at most 32 kChunks columns, by one warp. Indices stop at the last row and column: what lies
// beyond is computed for nothing and must not be stored.
template <class T, int kChunks, class Left, class Right>
__device__ __forceinline__ Tile<T, kChunks> warp_product(int rows, int columns, int depth,
                                                         int first, const Left& left,
                                                         const Right& right) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  Tile<T, kChunks> tile;
#pragma unroll
  for (int r = 0; r < kTileRows<kChunks>; ++r) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) tile.sum[r][c] = 0;
  }
#pragma unroll(kChunks == 4 ? 1 : 2)
  for (int k = 0; k < depth; ++k) {
    T row[kTileRows<kChunks>];
#pragma unroll
    for (int r = 0; r < kTileRows<kChunks>; ++r) {
      row[r] = left(first + r < rows ? first + r : rows - 1, k);
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = lane + 32 * c < columns ? lane + 32 * c : columns - 1;
      const T entry = right(k, column);
#pragma unroll
      for (int r = 0; r < kTileRows<kChunks>; ++r) tile.sum[r][c] += row[r] * entry;
    }
  }
  return tile;
}

// store(row, column, sum) for what the tile holds inside of [rows, columns].
template <class T, int kChunks, class Store>
__device__ __forceinline__ void store_tile(int rows, int columns, int first,
                                           const Tile<T, kChunks>& tile, const Store& store) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < kTileRows<kChunks>; ++r) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (first + r < rows && lane + 32 * c < columns) {
        store(first + r, lane + 32 * c, tile.sum[r][c]);
      }
    }
  }
}

// True in all threads if start [D, D] is there and orthogonal, which what is not finite never is.
// It passes through the views' basis; one sum at a time, for a tile's registers are not there: at
// D = 128 a solve takes 60 to 64 of float's 64. Barriers inside.
template <class T>
__device__ bool usable_start(const EigenShared<T>& s, const T* start) {
  if (start == nullptr) return false;
  const Place me = place();
  for (int i = me.warp; i < s.D; i += me.warps) {
    for (int j = me.lane; j < s.D; j += 32) s.basis[i * s.stride + j] = start[i * s.D + j];
  }
  __syncthreads();
  bool fine = true;
  for (int r = me.warp; r < s.D; r += me.warps) {
    for (int c = me.lane; c <= r; c += 32) {
      T sum = 0;
      for (int k = 0; k < s.D; ++k) {
        sum +=
            static_cast<T>(s.basis[k * s.stride + r]) * static_cast<T>(s.basis[k * s.stride + c]);
      }
      fine = fine && fabs(sum - T(r == c)) <= kStartDefect<T>;
    }
  }
  return __syncthreads_and(fine) != 0;
}

// scratch = Q^T S Q for the symmetric S in `scratch` [.., stride], both triangles, by way of
// `product` [D, D] in global memory. Barriers before, between and after.
template <class T, int kChunks>
__device__ void change_basis(int D, const T* q, const SharedArray<T>& s, int stride, T* product) {
  const Place me = place();
  __syncthreads();
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return static_cast<T>(s[r * stride + k]); },
        [&](int k, int c) { return q[k * D + c]; });
    store_tile(D, D, first, tile, [&](int r, int c, T sum) { product[r * D + c] = sum; });
  }
  __syncthreads();
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return q[k * D + r]; },
        [&](int k, int c) { return product[k * D + c]; });
    store_tile(D, D, first, tile,
               [&](int r, int c, T sum) {  // one triangle, so that it is symmetric
                 if (c > r) return;
                 s[r * stride + c] = sum;
                 s[c * stride + r] = sum;
               });
  }
  __syncthreads();
}

// V = V (3 I - V^T V) / 2 in place; `gram` [D, D] takes V V^T for the while. Barriers before and
// between.
template <class T, int kChunks, class Scratch>
__device__ void orthogonalize(const EigenShared<T>& s, const Scratch& gram, int gram_stride) {
  const Place me = place();
  const int D = s.D, stride = s.stride;
  __syncthreads();
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return static_cast<T>(s.basis[k * stride + r]); },
        [&](int k, int c) { return static_cast<T>(s.basis[k * stride + c]); });
    store_tile(D, D, first, tile, [&](int r, int c, T sum) { gram[r * gram_stride + c] = sum; });
  }
  __syncthreads();
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return static_cast<T>(s.basis[r * stride + k]); },
        [&](int k, int c) { return static_cast<T>(gram[k * gram_stride + c]); });
    __syncwarp();  // this warp alone reads and writes these rows
    store_tile(D, D, first, tile, [&](int r, int c, T sum) {
      const T old = s.basis[r * stride + c];
      s.basis[r * stride + c] = T(1.5) * old - T(0.5) * sum;
    });
  }
}

// values_k = v_k^T A v_k, A loaded anew into `scratch`. Barriers before and between.
template <class T, int kChunks, class Scratch>
__device__ void rayleigh_quotients(const EigenShared<T>& s, const T* a, const Scale<T>& scale,
                                   const Scratch& scratch, int scratch_stride) {
  const Place me = place();
  const int D = s.D, stride = s.stride;
  __syncthreads();
  load_symmetric(D, a, scale, scratch, scratch_stride);
  __syncthreads();
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return static_cast<T>(s.basis[r * stride + k]); },
        [&](int k, int c) { return static_cast<T>(scratch[k * scratch_stride + c]); });
    T quotient[kTileRows<kChunks>] = {};
    store_tile(D, D, first, tile, [&](int r, int c, T sum) {
      quotient[r - first] += sum * static_cast<T>(s.basis[r * stride + c]);
    });
#pragma unroll
    for (int r = 0; r < kTileRows<kChunks>; ++r) {
      const T value = warp_sum(quotient[r]);
      if (me.lane == 0 && first + r < D) s.values[first + r] = value;
    }
  }
}

// Ascending order, unique signs, scale undone: values [D] and vectors [D, D] (columns) in global
// memory. Barriers before and between.
template <class T>
__device__ void sort_and_store(const EigenShared<T>& s, const Scale<T>& scale, T* values,
                               T* vectors) {
  const int D = s.D, threads = static_cast<int>(blockDim.x);
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.x); k < D; k += threads) {
    const T mine = s.values[k];
    int rank = 0;
    T pivot = 0;
    for (int other = 0; other < D; ++other) {
      const T value = s.values[other], component = s.basis[k * s.stride + other];
      rank += value < mine || (value == mine && other < k);
      if (fabs(component) > fabs(pivot)) pivot = component;
    }
    s.order[rank] = k;
    s.signs[k] = pivot < 0 ? T(-1) : T(1);
  }
  __syncthreads();
  const Place me = place();
  for (int r = me.warp; r < D; r += me.warps) {
    for (int c = me.lane; c < D; c += 32) {
      const int k = s.order[c];
      vectors[r * D + c] = static_cast<T>(s.signs[k]) * static_cast<T>(s.basis[k * s.stride + r]);
      if (r == 0) values[c] = scale.undo(s.values[k]);
    }
  }
}

template <class T>
__device__ void store_nan(int D, T* values, T* vectors) {
  for (int i = static_cast<int>(threadIdx.x); i < D * D; i += static_cast<int>(blockDim.x)) {
    vectors[i] = not_a_number<T>();
    if (i < D) values[i] = not_a_number<T>();
  }
}

}  // namespace cuda
}  // namespace fastwhiten
