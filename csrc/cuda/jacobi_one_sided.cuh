// One-sided Jacobi on the Cholesky factor, one array in shared memory: up to D = 128.
//
// A + shift I = L L^T; rotations from the right make the columns of L orthogonal, L J = U diag(s):
// the columns are eigenvectors, s^2 - shift eigenvalues, and no second matrix is carried along.
// A warp rotates a pair of columns by itself; one barrier a round. The shift is of the size of
// rounding where A is positive semidefinite. Where that does not do (an indefinite A), two-sided
// Jacobi takes over. If shared memory has no room for its second array, double's eigenvectors turn
// in global memory; float (on devices of less than 147 KiB) shifts by Gershgorin's bound, with
// which nothing can fail, and which magnifies the rounding of eigenvectors of small eigenvalues.
// Shared memory: D (D + 1) numbers, 65 KiB for float, 130 KiB for double at D = 128; a round moves
// 2 D^2 numbers there. Bytes of global memory: A three times, V (also the scratch of the finish) 5
// times, l once. Deterministic: sums of a warp have one order.
#pragma once

#include "jacobi_two_sided.cuh"

namespace fastwhiten {
namespace cuda {

// S [D, stride] becomes L^T: row j holds column j of L. False, in all threads, where a pivot is not
// positive. Barriers before, between and after.
template <class T>
__device__ bool cholesky_columns(const EigenShared<T>& s) {
  const Place me = place();
  const int D = s.D, stride = s.stride;
  for (int j = 0; j < D; ++j) {  // row j is final but for 1 / sqrt(pivot), which comes last
    __syncthreads();
    const T pivot = s.basis[j * stride + j];
    if (!(pivot > Precision<T>::tiny)) return false;
    for (int i = j + 1 + me.warp; i < D; i += me.warps) {
      const T factor = static_cast<T>(s.basis[j * stride + i]) / pivot;
      for (int r = i + me.lane % 32; r < D; r += 32) {
        s.basis[i * stride + r] -= factor * static_cast<T>(s.basis[j * stride + r]);
      }
    }
  }
  __syncthreads();
  for (int j = me.warp; j < D; j += me.warps) {
    const T inverse = 1 / sqrt(static_cast<T>(s.basis[j * stride + j]));
    __syncwarp();
    for (int r = me.lane; r < D; r += 32) {
      s.basis[j * stride + r] = r < j ? T(0) : inverse * static_cast<T>(s.basis[j * stride + r]);
    }
  }
  __syncthreads();
  return true;
}

// A bound m >= 0 with A + m I positive semidefinite, by Gershgorin's discs. Barriers inside.
template <class T>
__device__ T negative_bound(const EigenShared<T>& s) {
  const Place me = place();
  T bound = 0;
  for (int i = me.warp; i < s.D; i += me.warps) {
    T sum = 0;
    for (int j = me.lane; j < s.D; j += 32) {
      const T entry = s.basis[i * s.stride + j];
      sum += j == i ? -entry : fabs(entry);
    }
    sum = warp_sum(sum);
    bound = sum > bound ? sum : bound;
  }
  if (me.lane == 0) s.partial[me.warp] = bound;
  __syncthreads();
  for (int w = 0; w < me.warps; ++w) {
    const T other = s.partial[w];
    bound = other > bound ? other : bound;
  }
  return bound;
}

// S = scaled A, or Q^T A Q. A barrier before is needed, one is made after.
template <class T, int kChunks>
__device__ void load_rotated(const EigenShared<T>& s, const T* a, const Scale<T>& scale,
                             const T* start, T* scratch) {
  load_symmetric(s.D, a, scale, s.basis, s.stride);
  if (start != nullptr) {
    change_basis<T, kChunks>(s.D, start, s.basis, s.stride, scratch);
  } else {
    __syncthreads();
  }
}

template <class T>
__device__ void add_to_diagonal(const EigenShared<T>& s, T shift) {
  for (int i = static_cast<int>(threadIdx.x); i < s.D; i += static_cast<int>(blockDim.x)) {
    s.basis[i * s.stride + i] += shift;
  }
}

// Rotates rows p and q of the array against each other, by half a warp; returns how far
// off they were. Both halves take part even where one has no pair left.
template <class T, int kChunks>
__device__ __forceinline__ Off rotate_rows(const EigenShared<T>& s, Pair at, bool valid) {
  const int lane = static_cast<int>(threadIdx.x % 16);
  T p[2 * kChunks], q[2 * kChunks], pp = 0, qq = 0, pq = 0;
#pragma unroll
  for (int c = 0; c < 2 * kChunks; ++c) {
    const int r = lane + 16 * c;
    p[c] = valid && r < s.D ? static_cast<T>(s.basis[at.p * s.stride + r]) : T(0);
    q[c] = valid && r < s.D ? static_cast<T>(s.basis[at.q * s.stride + r]) : T(0);
    pp += p[c] * p[c];
    qq += q[c] * q[c];
    pq += p[c] * q[c];
  }
  pp = warp_sum(pp, 16);
  qq = warp_sum(qq, 16);
  pq = warp_sum(pq, 16);
  const Off off = off_diagonal(pp, qq, pq);
  if (off == kNoise) return off;
  const Rotation<T> angle = rotation(pp, qq, pq);
#pragma unroll
  for (int c = 0; c < 2 * kChunks; ++c) {
    const int r = lane + 16 * c;
    if (r >= s.D) continue;
    turn(angle.sine, angle.half, p[c], q[c]);
    s.basis[at.p * s.stride + r] = p[c];
    s.basis[at.q * s.stride + r] = q[c];
  }
  return off;
}

// Rounds until a whole sweep's worth of them found no pair far off; returns the sweeps it took.
template <class T, int kChunks>
__device__ int one_sided_sweeps(const EigenShared<T>& s) {
  const Place me = place();
  const int n = eigen_rows(s.D), rounds = n - 1;
  int round = 0, quiet = 0, done = 0;
  for (; done < kMaxSweeps * rounds && quiet < rounds; ++done) {
    bool large = false;
    for (int first = 2 * me.warp; first < n / 2; first += 2 * me.warps) {
      const int k = first + me.lane / 16;
      const Pair at = round_robin(n, round, k < n / 2 ? k : first);
      const bool valid = k < n / 2 && at.q < s.D;  // an odd D leaves one alone
      large |= rotate_rows<T, kChunks>(s, at, valid) == kLarge;
    }
    quiet = __syncthreads_or(large) != 0 ? 0 : quiet + 1;
    round = round + 1 == rounds ? 0 : round + 1;
  }
  return (done + rounds - 1) / rounds;
}

// Rows of the array become unit vectors, and leave the basis Q if there is one. Barrier after.
template <class T, int kChunks>
__device__ void normalize_rows(const EigenShared<T>& s, const T* start) {
  const Place me = place();
  const int D = s.D, stride = s.stride;
  for (int k = me.warp; k < D; k += me.warps) {
    T sum = 0;
    for (int r = me.lane; r < D; r += 32) {
      const T entry = s.basis[k * stride + r];
      sum += entry * entry;
    }
    const T inverse = 1 / sqrt(warp_sum(sum));
    for (int r = me.lane; r < D; r += 32) s.basis[k * stride + r] *= inverse;
  }
  __syncthreads();
  if (start == nullptr) return;
  for (int first = kTileRows<kChunks> * me.warp; first < D;
       first += kTileRows<kChunks> * me.warps) {
    const auto tile = warp_product<T, kChunks>(
        D, D, D, first, [&](int r, int k) { return static_cast<T>(s.basis[r * stride + k]); },
        [&](int k, int c) { return start[c * D + k]; });
    __syncwarp();  // this warp alone reads and writes these rows
    store_tile(D, D, first, tile, [&](int r, int c, T sum) { s.basis[r * stride + c] = sum; });
  }
}

// Two-sided Jacobi with its eigenvectors in `vectors` [D, D], then in the views' basis; returns the
// sweeps. Every element has one author a round, and barriers between rounds, as in shared memory.
template <class T, int kChunks>
__device__ int two_sided_in_global(const EigenShared<T>& s, const T* a, const Scale<T>& scale,
                                   const T* q, T* vectors) {
  const Place me = place();
  const int D = s.D, n = eigen_rows(D);
  const GlobalBasis<T> views(s, vectors);
  load_symmetric(D, a, scale, views.matrix, s.stride);
  if (q != nullptr) change_basis<T, kChunks>(D, q, views.matrix, s.stride, vectors);
  for (int i = me.warp; i < n; i += me.warps) {
    for (int j = me.lane; j < n; j += 32) {
      if (i >= D || j >= D) {
        views.matrix[i * s.stride + j] = 0;
      } else {
        vectors[i * D + j] = q != nullptr ? q[j * D + i] : T(i == j);
      }
    }
  }
  __syncthreads();
  const int sweeps = two_sided_sweeps(views);  // ends with a barrier
  for (int i = me.warp; i < D; i += me.warps) {
    for (int j = me.lane; j < D; j += 32) s.basis[i * s.stride + j] = vectors[i * D + j];
  }
  return sweeps;
}

// The views' basis becomes the eigenvectors of A, not yet finished; returns the sweeps.
template <class T, int kChunks>
__device__ int one_sided_basis(const EigenShared<T>& s, bool both, const T* a,
                               const Scale<T>& scale, const T* q, T* scratch) {
  const T noise = 8 * static_cast<T>(s.D) * Precision<T>::epsilon;  // the entries are below 4
  load_rotated<T, kChunks>(s, a, scale, q, scratch);
  add_to_diagonal(s, noise);
  if (!cholesky_columns(s)) {
    __syncthreads();
    if (both) return two_sided_basis<T, kChunks>(s, a, scale, q, scratch);
    if constexpr (sizeof(T) == 8) {
      return two_sided_in_global<T, kChunks>(s, a, scale, q, scratch);
    } else {  // has no registers left for that
      load_rotated<T, kChunks>(s, a, scale, q, scratch);
      const T bound = negative_bound(s);
      add_to_diagonal(s, bound + noise * (1 + bound));
      cholesky_columns(s);
    }
  }
  const int sweeps = one_sided_sweeps<T, kChunks>(s);
  normalize_rows<T, kChunks>(s, q);
  return sweeps;
}

// Eigenvalues [D] ascending and eigenvectors [D, D] (columns) of a [D, D], of which the lower
// triangle is read; returns the sweeps. Sweeps begin from the start [D, D] unless it is null or
// not orthogonal. `both` says that the views have two arrays. To be called by all threads of a
// block of whole warps, with D <= 32 kChunks; needs a barrier before and after, as two_sided_eigh.
template <class T, int kChunks>
__device__ int one_sided_eigh(const EigenShared<T>& s, bool both, const T* a, const T* start,
                              T* values, T* vectors) {
  const T largest = largest_entry(s.D, a, s.partial);
  if (!(largest <= Precision<T>::largest)) {  // for this matrix alone
    store_nan(s.D, values, vectors);
    return 0;
  }
  const Scale<T> scale(largest);
  const T* const q = usable_start(s, start) ? start : nullptr;
  const int sweeps = one_sided_basis<T, kChunks>(s, both, a, scale, q, vectors);
  orthogonalize<T, kChunks>(s, vectors, s.D);
  rayleigh_quotients<T, kChunks>(s, a, scale, vectors, s.D);
  sort_and_store(s, scale, values, vectors);
  return sweeps;
}

}  // namespace cuda
}  // namespace fastwhiten
