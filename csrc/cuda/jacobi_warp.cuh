// Two-sided Jacobi by one warp, in registers: matrices of at most 16.
//
// Lane j < 16 holds column j of A, lane 16 + i row i of V (A_0 = V A V^T), both as x[0..N).
// Rotating A's rows and V's columns is then one instruction for all lanes; A's columns are rotated
// by a shuffle between neighbours. Pairs are always positions (2k, 2k + 1): after a round everybody
// moves on by one seat, registers and lanes alike, so that no register is ever indexed by a
// variable. N - 1 rounds bring all back to their seats. Then one Newton-Schulz step V (3 I - V^T V)
// / 2 and Rayleigh quotients. Bytes: A once or twice, V and l once. No shared memory; one order of
// sums.
#pragma once

#include "jacobi.cuh"

namespace fastwhiten {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Who sits at position i after a round: the player from this position. Position 0 stays.
__host__ __device__ constexpr int previous_seat(int n, int i) {
  if (n == 2 || i == 0) return i;
  if (i == 2) return 1;
  if (i == n - 1) return n - 2;
  return i % 2 == 0 ? i - 2 : i + 2;
}

template <class T, int N>
struct WarpMatrix {
  T x[N];
};

// One round; returns how far this lane's pair was off.
template <class T, int N>
__device__ __forceinline__ Off warp_round(WarpMatrix<T, N>& m) {
  const int lane = static_cast<int>(threadIdx.x % 32), seat = lane % 16;
  const bool in_a = lane < N;
  T diagonal = 0, beside = 0;  // a[seat][seat] and a[seat ^ 1][seat]
#pragma unroll
  for (int i = 0; i < N; ++i) {
    // Read before the question: a read behind it becomes a variable index, in local memory.
    const T entry = m.x[i];
    diagonal = i == seat ? entry : diagonal;
    beside = i == (seat ^ 1) ? entry : beside;
  }
  // Both lanes of a pair work with the same three numbers, so they get the same rotation.
  const int even = lane & ~1;
  const T pp = __shfl_sync(kAllLanes, diagonal, even);
  const T qq = __shfl_sync(kAllLanes, diagonal, even + 1);
  const T pq = __shfl_sync(kAllLanes, beside, even);
  Rotation<T> angle = {0, 0, 0};
  const Off off = in_a ? off_diagonal(pp, qq, pq) : kNoise;
  const bool active = off != kNoise;
  if (active) angle = rotation(pp, qq, pq);
  if (__any_sync(kAllLanes, active)) {
    const T toward = lane % 2 == 0 ? -angle.sine : angle.sine;
    const T half = lane % 2 == 0 ? angle.half : -angle.half;
#pragma unroll
    for (int i = 0; i < N; ++i) {  // columns of A
      const T other = __shfl_xor_sync(kAllLanes, m.x[i], 1);
      if (in_a) m.x[i] += toward * (other + half * m.x[i]);
    }
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {  // rows of A, columns of V
      const T sine = __shfl_sync(kAllLanes, angle.sine, 2 * k);
      const T half_k = __shfl_sync(kAllLanes, angle.half, 2 * k);
      turn(sine, half_k, m.x[2 * k], m.x[2 * k + 1]);
    }
    // What is known exactly: the zero, and the diagonal without cancellation.
    const T mine = lane % 2 == 0 ? pp - angle.tangent * pq : qq + angle.tangent * pq;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const T entry = m.x[i];
      const T beside_or = i == (seat ^ 1) ? T(0) : entry;
      m.x[i] = !active ? entry : i == seat ? mine : beside_or;
    }
  }
  WarpMatrix<T, N> moved;
  int from = lane;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    from = in_a && i == seat ? previous_seat(N, i) : from;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    moved.x[i] = __shfl_sync(kAllLanes, m.x[previous_seat(N, i)], from);
  }
  m = moved;
  return off;
}

// Sweeps until one finds no pair that is far off; returns how many that took.
template <class T, int N>
__device__ __forceinline__ int warp_sweeps(WarpMatrix<T, N>& m) {
  for (int sweep = 1; sweep <= kMaxSweeps; ++sweep) {
    bool large = false;
    for (int r = 0; r < N - 1; ++r) large |= warp_round(m) == kLarge;
    if (!__any_sync(kAllLanes, large)) return sweep;
  }
  return kMaxSweeps;
}

// Row i of V (lane 16 + i) becomes row i of (3 I - V V^T) V / 2: orthogonal to second order.
template <class T, int N>
__device__ __forceinline__ void warp_orthogonalize(WarpMatrix<T, N>& v) {
  WarpMatrix<T, N> sum;
#pragma unroll
  for (int c = 0; c < N; ++c) sum.x[c] = T(1.5) * v.x[c];
  for (int s = 0; s < N; ++s) {
    WarpMatrix<T, N> row;
    T dot = 0;
#pragma unroll
    for (int c = 0; c < N; ++c) {
      row.x[c] = __shfl_sync(kAllLanes, v.x[c], 16 + s);
      dot += row.x[c] * v.x[c];
    }
#pragma unroll
    for (int c = 0; c < N; ++c) sum.x[c] -= T(0.5) * dot * row.x[c];
  }
  v = sum;
}

// l_c = v_c^T A v_c in every lane; `a_row` is row i of A in lane 16 + i, 0 elsewhere.
template <class T, int N>
__device__ __forceinline__ WarpMatrix<T, N> warp_rayleigh(const WarpMatrix<T, N>& v,
                                                          const WarpMatrix<T, N>& a_row) {
  WarpMatrix<T, N> l;
#pragma unroll
  for (int c = 0; c < N; ++c) l.x[c] = 0;
#pragma unroll
  for (int s = 0; s < N; ++s) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
      l.x[c] += a_row.x[s] * __shfl_sync(kAllLanes, v.x[c], 16 + s);  // (A v_c)_i
    }
  }
#pragma unroll
  for (int c = 0; c < N; ++c) {
    l.x[c] = warp_sum(static_cast<int>(threadIdx.x % 32) >= 16 ? l.x[c] * v.x[c] : T(0));
  }
  return l;
}

// The sign that makes the largest component (the first of equals) of v_c positive, in lanes of V.
template <class T>
__device__ __forceinline__ T warp_sign(T component) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  T best = component;
  int row = lane;
  for (int lanes = 8; lanes > 0; lanes /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, best, lanes);
    const int other_row = __shfl_xor_sync(kAllLanes, row, lanes);
    const T ahead = fabs(other) - fabs(best);
    if (ahead > 0 || (ahead == 0 && other_row < row)) {
      best = other;
      row = other_row;
    }
  }
  return best < 0 ? T(-1) : T(1);
}

// Row (and column) `index` = lane % 16 of the symmetric a [D, D], scaled; 0 from D on.
template <class T, int N>
__device__ __forceinline__ WarpMatrix<T, N> warp_load(int D, const T* a, const Scale<T>& scale) {
  const int index = static_cast<int>(threadIdx.x % 16);
  WarpMatrix<T, N> m;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const bool inside = i < D && index < D;
    const T entry = inside ? a[i > index ? i * D + index : index * D + i] : T(0);
    m.x[i] = scale.apply(entry);
  }
  return m;
}

// Lanes of V: row i of the start Q [D, D], of the identity without one. Lanes of A: column i of
// Q^T A Q, from `rows` of A in all lanes.
template <class T, int N>
__device__ __forceinline__ WarpMatrix<T, N> warp_start(int D, const T* start,
                                                       const WarpMatrix<T, N>& rows) {
  const int lane = static_cast<int>(threadIdx.x % 32), index = lane % 16;
  WarpMatrix<T, N> m;
  bool fine = start != nullptr;
#pragma unroll
  for (int c = 0; c < N; ++c) {
    const bool inside = c < D && index < D && start != nullptr;
    m.x[c] = inside ? start[index * D + c] : T(c == index);
  }
  for (int s = 0; s < N; ++s) {  // rows against each other; NaN and infinity fail
    T dot = 0;
#pragma unroll
    for (int c = 0; c < N; ++c) dot += m.x[c] * __shfl_sync(kAllLanes, m.x[c], 16 + s);
    fine = fine && (index >= N || fabs(dot - T(s == index)) <= kStartDefect<T>);
  }
  if (!__all_sync(kAllLanes, fine)) {
#pragma unroll
    for (int c = 0; c < N; ++c) m.x[c] = lane >= 16 ? T(c == index) : rows.x[c];
    return m;
  }
  WarpMatrix<T, N> product, column;  // row i of A Q, then column i of Q^T (A Q)
#pragma unroll
  for (int c = 0; c < N; ++c) product.x[c] = column.x[c] = 0;
#pragma unroll
  for (int s = 0; s < N; ++s) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
      product.x[c] += rows.x[s] * __shfl_sync(kAllLanes, m.x[c], 16 + s);
    }
  }
  for (int s = 0; s < D; ++s) {
    const T q = index < D ? start[s * D + index] : T(0);
#pragma unroll
    for (int c = 0; c < N; ++c) column.x[c] += q * __shfl_sync(kAllLanes, product.x[c], 16 + s);
  }
#pragma unroll
  for (int c = 0; c < N; ++c) m.x[c] = lane >= 16 ? m.x[c] : column.x[c];
  return m;
}

// Ascending order, unique signs, scale undone.
template <class T, int N>
__device__ __forceinline__ void warp_store(int D, const WarpMatrix<T, N>& v,
                                           const WarpMatrix<T, N>& l, const Scale<T>& scale,
                                           T* values, T* vectors) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane - 16;
#pragma unroll
  for (int c = 0; c < N; ++c) {
    const T sign = warp_sign(v.x[c]);
    int rank = 0;
#pragma unroll
    for (int d = 0; d < N; ++d) {
      rank += d < D && (l.x[d] < l.x[c] || (l.x[d] == l.x[c] && d < c));
    }
    if (c < D && row >= 0 && row < D) vectors[row * D + rank] = sign * v.x[c];
    if (c < D && lane == c) values[rank] = scale.undo(l.x[c]);
  }
}

// Eigenvalues [D] ascending and eigenvectors [D, D] (columns) of a [D, D], of which the lower
// triangle is read, D <= N; the number of sweeps is returned. Sweeps begin from the start
// [D, D] unless it is null or not orthogonal. To be called by a whole warp.
template <class T, int N>
__device__ int warp_eigh(int D, const T* a, const T* start, T* values, T* vectors) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  WarpMatrix<T, N> rows = warp_load<T, N>(D, a, Scale<T>(0));
  T largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const T size = finite_magnitude(rows.x[i]);
    largest = size > largest ? size : largest;
  }
  largest = warp_max(largest);
  if (!(largest <= Precision<T>::largest)) {  // for this matrix alone
    for (int i = lane; i < D * D; i += 32) vectors[i] = not_a_number<T>();
    if (lane < D) values[lane] = not_a_number<T>();
    return 0;
  }
  const Scale<T> scale(largest);
#pragma unroll
  for (int i = 0; i < N; ++i) rows.x[i] = scale.apply(rows.x[i]);
  WarpMatrix<T, N> m = warp_start<T, N>(D, start, rows);
  const int sweeps = warp_sweeps(m);
  warp_orthogonalize(m);
  // A is read again: holding it through the sweeps would cost N registers.
  warp_store(D, m, warp_rayleigh(m, warp_load<T, N>(D, a, scale)), scale, values, vectors);
  return sweeps;
}

}  // namespace cuda
}  // namespace fastwhiten
