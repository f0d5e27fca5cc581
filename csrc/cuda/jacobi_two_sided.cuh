// Two-sided Jacobi by one block, the matrix and its eigenvectors in shared memory: up to D = 64.
//
// A round rotates n/2 disjoint pairs: A = J^T A J in blocks of 2 x 2, each read and written by one
// thread (the lower triangle mirrors the upper), V = V J. While V turns, the first warp prepares
// the rotations of the next round: they need A only. Two barriers a round, one where nothing
// rotates. Shared memory: 2 n (n + 1) numbers, 33 KiB for float, 66 KiB for double at D = 64; a
// round moves 2 n^2 numbers of A and 4 D n of V there. Bytes of global memory: A three times, V and
// l once. Deterministic: every number has one author a round.
#pragma once

#include "jacobi_block.cuh"

namespace fastwhiten {
namespace cuda {

// Walks over the blocks (k, l), k <= l, of an m x m triangle in steps of the block's threads. Row k
// and row m - 1 - k together have m + 1 blocks: folded like that they form a rectangle.
struct TriangleWalk {
  int m, row, column, row_step, column_step;
  __device__ explicit TriangleWalk(int size)
      : m(size),
        row(static_cast<int>(threadIdx.x) / (size + 1)),
        column(static_cast<int>(threadIdx.x) % (size + 1)),
        row_step(static_cast<int>(blockDim.x) / (size + 1)),
        column_step(static_cast<int>(blockDim.x) % (size + 1)) {}
  // A middle row has no partner, and half the length.
  __device__ bool inside() const {
    return 2 * row + 1 < m || (2 * row + 1 == m && column < m - row);
  }
  __device__ int k() const { return column < m - row ? row : m - 1 - row; }
  __device__ int l() const { return column < m - row ? row + column : column - 1; }
  __device__ void next() {
    row += row_step;
    column += column_step;
    if (column > m) {
      column -= m + 1;
      ++row;
    }
  }
};

// Rotations of a round into buffer 0 or 1; returns how far off the worst of this thread's pairs is.
template <class T>
__device__ __forceinline__ Off prepare_rotations(const EigenShared<T>& s, int round, int buffer) {
  const int n = eigen_rows(s.D), pairs = n / 2;
  Off worst = kNoise;
  for (int k = static_cast<int>(threadIdx.x); k < pairs; k += static_cast<int>(blockDim.x)) {
    const Pair at = round_robin(n, round, k);
    const T pp = s.matrix[at.p * s.stride + at.p], qq = s.matrix[at.q * s.stride + at.q];
    const T pq = s.matrix[at.p * s.stride + at.q];
    Rotation<T> angle = {0, 0, 0};
    const Off off = off_diagonal(pp, qq, pq);
    if (off != kNoise) angle = rotation(pp, qq, pq);
    worst = off > worst ? off : worst;
    s.rotations[(3 * buffer + 0) * pairs + k] = angle.half;
    s.rotations[(3 * buffer + 1) * pairs + k] = angle.sine;
    s.rotations[(3 * buffer + 2) * pairs + k] = angle.tangent;
  }
  return worst;
}

// The block of A where pair k meets itself: known without cancellation.
template <class T>
__device__ __forceinline__ void rotate_diagonal(const EigenShared<T>& s, Pair at, T tangent) {
  const T change = tangent * static_cast<T>(s.matrix[at.p * s.stride + at.q]);
  s.matrix[at.p * s.stride + at.p] -= change;
  s.matrix[at.q * s.stride + at.q] += change;
  s.matrix[at.p * s.stride + at.q] = 0;
  s.matrix[at.q * s.stride + at.p] = 0;
}

template <class T>
__device__ __forceinline__ void rotate_matrix(const EigenShared<T>& s, TriangleWalk walk, int round,
                                              int buffer) {
  const int n = eigen_rows(s.D), pairs = n / 2, stride = s.stride;
  for (; walk.inside(); walk.next()) {
    const int k = walk.k(), l = walk.l();
    const T sine_k = s.rotations[(3 * buffer + 1) * pairs + k];
    const T sine_l = s.rotations[(3 * buffer + 1) * pairs + l];
    if (sine_k == 0 && sine_l == 0) continue;
    const Pair row = round_robin(n, round, k), column = round_robin(n, round, l);
    if (k == l) {
      rotate_diagonal<T>(s, row, s.rotations[(3 * buffer + 2) * pairs + k]);
      continue;
    }
    const T half_k = s.rotations[3 * buffer * pairs + k];
    const T half_l = s.rotations[3 * buffer * pairs + l];
    T pu = s.matrix[row.p * stride + column.p], pv = s.matrix[row.p * stride + column.q];
    T qu = s.matrix[row.q * stride + column.p], qv = s.matrix[row.q * stride + column.q];
    turn(sine_k, half_k, pu, qu);
    turn(sine_k, half_k, pv, qv);
    turn(sine_l, half_l, pu, pv);
    turn(sine_l, half_l, qu, qv);
    s.matrix[row.p * stride + column.p] = pu;
    s.matrix[row.p * stride + column.q] = pv;
    s.matrix[row.q * stride + column.p] = qu;
    s.matrix[row.q * stride + column.q] = qv;
    s.matrix[column.p * stride + row.p] = pu;
    s.matrix[column.q * stride + row.p] = pv;
    s.matrix[column.p * stride + row.q] = qu;
    s.matrix[column.q * stride + row.q] = qv;
  }
}

// The views where shared memory has room for A alone: the eigenvectors turn in global memory.
template <class T>
struct GlobalBasis : EigenShared<T> {
  __device__ GlobalBasis(const EigenShared<T>& s, T* vectors) : EigenShared<T>(s), basis(vectors) {
    this->matrix = s.basis;
  }
  T* basis;  // V^T [D, D]
};

template <class T>
__device__ __forceinline__ int basis_stride(const EigenShared<T>& s) {
  return s.stride;
}
template <class T>
__device__ __forceinline__ int basis_stride(const GlobalBasis<T>& s) {
  return s.D;
}

template <class Views>
__device__ __forceinline__ void rotate_basis(const Views& s, int round, int buffer) {
  using T = typename Views::Number;
  const Place me = place();
  const int n = eigen_rows(s.D), pairs = n / 2, stride = basis_stride(s);
  for (int k = me.warp; k < pairs; k += me.warps) {
    const T sine = s.rotations[(3 * buffer + 1) * pairs + k];
    if (sine == 0) continue;  // also where an odd D leaves a player without partner
    const T half = s.rotations[3 * buffer * pairs + k];
    const Pair at = round_robin(n, round, k);
    for (int r = me.lane; r < s.D; r += 32) {
      T p = s.basis[at.p * stride + r], q = s.basis[at.q * stride + r];
      turn(sine, half, p, q);
      s.basis[at.p * stride + r] = p;
      s.basis[at.q * stride + r] = q;
    }
  }
}

// Sweeps until one finds no pair that is far off; returns how many that took.
template <class Views>
__device__ int two_sided_sweeps(const Views& s) {
  const int rounds = eigen_rows(s.D) - 1;
  const TriangleWalk walk(eigen_rows(s.D) / 2);
  Off off = prepare_rotations(s, 0, 0);
  bool turning = __syncthreads_or(off != kNoise) != 0;
  int buffer = 0;
  for (int sweep = 1; sweep <= kMaxSweeps; ++sweep) {
    bool large = false;
    for (int round = 0; round < rounds; ++round) {
      large |= off == kLarge;
      if (turning) {
        rotate_matrix(s, walk, round, buffer);
        __syncthreads();
      }
      off = prepare_rotations(s, round + 1 == rounds ? 0 : round + 1, 1 - buffer);
      if (turning) rotate_basis(s, round, buffer);
      turning = __syncthreads_or(off != kNoise) != 0;
      buffer = 1 - buffer;
    }
    if (__syncthreads_or(large) == 0) return sweep;
  }
  return kMaxSweeps;
}

// Loads A (or Q^T A Q, where q is not null) and turns the views' basis into its eigenvectors, not
// yet finished; returns the sweeps. `scratch` [D, D] is global memory. A barrier before is needed.
template <class T, int kChunks>
__device__ int two_sided_basis(const EigenShared<T>& s, const T* a, const Scale<T>& scale,
                               const T* q, T* scratch) {
  const Place me = place();
  const int D = s.D, n = eigen_rows(D), stride = s.stride;
  load_symmetric(D, a, scale, s.matrix, stride);
  if (q != nullptr) change_basis<T, kChunks>(D, q, s.matrix, stride, scratch);
  for (int i = me.warp; i < n; i += me.warps) {
    for (int j = me.lane; j < n; j += 32) {
      if (i >= D || j >= D) s.matrix[i * stride + j] = 0;
      s.basis[i * stride + j] = q != nullptr && i < D && j < D ? q[j * D + i] : T(i == j);
    }
  }
  __syncthreads();
  return two_sided_sweeps(s);
}

// Eigenvalues [D] ascending and eigenvectors [D, D] (columns) of a [D, D], of which the lower
// triangle is read; returns the sweeps. Sweeps begin from the start [D, D] unless it is null or
// not orthogonal. To be called by all threads of a block of whole warps, with D <= 32 kChunks;
// begins and ends with whatever is in shared memory unordered: a barrier before, and one after.
template <class T, int kChunks>
__device__ int two_sided_eigh(const EigenShared<T>& s, const T* a, const T* start, T* values,
                              T* vectors) {
  const T largest = largest_entry(s.D, a, s.partial);
  if (!(largest <= Precision<T>::largest)) {  // for this matrix alone
    store_nan(s.D, values, vectors);
    return 0;
  }
  const Scale<T> scale(largest);
  const T* const q = usable_start(s, start) ? start : nullptr;
  const int sweeps = two_sided_basis<T, kChunks>(s, a, scale, q, vectors);
  orthogonalize<T, kChunks>(s, s.matrix, s.stride);
  rayleigh_quotients<T, kChunks>(s, a, scale, s.matrix, s.stride);
  sort_and_store(s, scale, values, vectors);
  return sweeps;
}

}  // namespace cuda
}  // namespace fastwhiten
