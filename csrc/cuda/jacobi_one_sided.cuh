// One-sided Jacobi on a pivoted Cholesky factor, its rows in registers: 17 <= D <= 128 (64 for
// double).
//
// P^T (A + shift I) P = L L^T with diagonal pivoting; rotations make the rows of G = L^T
// orthogonal, J G = diag(s) U^T: row k is an eigenvector times s_k, and no second matrix is carried
// along. The shift is of the size of rounding where A is positive semidefinite; where elimination
// fails (an indefinite A), it is |A^4|_F^(1/4) >= |A|_2, with which nothing can fail.
//
// A warp holds two blocks of four rows, P and Q: row j of P and one of Q belong to eight lanes,
// which rotate them against each other. Four rounds turn all pairs of the two blocks, Q's rows
// walking from eight lanes to the next by shuffles; then blocks change partners through shared
// memory, one barrier for four rounds. Block i meets i XOR 1, 2, ..., N / 4 - 1: P stays while the
// highest bit does. Pairs inside of the blocks have three rounds after the last partner. Every row
// has one place in shared memory: written by who had it, read by who takes it, written next by the
// same warp, so that one barrier is enough. N - 1 rounds a sweep, N = 32, 64, 128, rows beyond D
// being zero. Deterministic: every sum has one order.
#pragma once

#include "jacobi_block.cuh"

namespace fastwhiten {
namespace cuda {

template <class T, int N>
struct RowPair {
  static constexpr int kEach = N / 8;  // numbers of a row a lane: four of every 32
  T p[kEach], q[kEach];
  T pp, qq;  // halves of their squared norms

  // The column of number i of this lane.
  __device__ static __forceinline__ int column(int i) {
    return i / 4 * 32 + static_cast<int>(threadIdx.x) % 8 * 4 + i % 4;
  }
  __device__ __forceinline__ static void load(const SharedArray<T>& rows, int row, T (&to)[kEach]) {
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      const Four<T> four = load4(rows, row * kRowStride<N> + column(i));
#pragma unroll
      for (int w = 0; w < 4; ++w) to[i + w] = four.v[w];
    }
  }
  __device__ __forceinline__ static void store(const SharedArray<T>& rows, int row,
                                               const T (&from)[kEach], T factor = T(1)) {
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      store4(rows, row * kRowStride<N> + column(i),
             Four<T>{{factor * from[i], factor * from[i + 1], factor * from[i + 2],
                      factor * from[i + 3]}});
    }
  }
};

// The sum over eight lanes, in each of them with the same bits.
template <class T>
__device__ __forceinline__ T row_sum(T value) {
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

template <class T, int kEach>
__device__ __forceinline__ T dot(const T (&a)[kEach], const T (&b)[kEach]) {
  T even = a[0] * b[0], odd = a[1] * b[1];  // two chains of additions
#pragma unroll
  for (int i = 2; i < kEach; i += 2) {
    even += a[i] * b[i];
    odd += a[i + 1] * b[i + 1];
  }
  return even + odd;
}

// 1 / sqrt(x) and 1 / x by Newton's steps from an approximation, to a rounding or two; NaN for 0.
template <class T>
__device__ __forceinline__ T inverse_root(T x) {
  T y = approximate_rsqrt(x);
#pragma unroll
  for (int step = 0; step < static_cast<int>(sizeof(T)) / 4; ++step) {
    y += y * (T(0.5) - T(0.5) * x * y * y);
  }
  return y;
}
template <class T>
__device__ __forceinline__ T inverse(T x) {
  T y = approximate_reciprocal(x);
#pragma unroll
  for (int step = 1; step < static_cast<int>(sizeof(T)) / 4 + 1 && sizeof(T) > 4; ++step) {
    y += y * (1 - x * y);
  }
  return y;
}

// The angle by which a pair turns: its sine, and the tangent of its half. As tau = tan(angle / 2)
// and sine = 2 tau / (1 + tau^2), a rotation is one whatever tau is: that need not be exact.
template <class T>
struct Angle {
  T sine, half;
};

// Half of the angle whose tangent is pq / difference; 0 where `turns` is false. tau by a polynomial
// in the cosine of that angle: off by 1.4e-4 of itself at most, so that as much of pq is left to
// the next sweep; the sine by one with an error of 8e-9. (Interpolations at the Chebyshev nodes of
// [0, 1], and of [0, tan(pi / 8)^2].)
__device__ __forceinline__ Angle<float> half_of(float difference, float pq, bool turns) {
  const float over_root = approximate_rsqrt(difference * difference + (pq * pq + 1e-30f));
  const float s = (!turns ? 0.0f : difference < 0 ? -pq : pq) * over_root;
  const float c = fabs(difference) * over_root, c2 = c * c;
  const float upper = 0.21348202f + c * -0.12059845f;
  const float lower = 0.41416515f + c * -0.29026312f;
  const float tau = s * (lower + c2 * (upper + c2 * 0.03324953f));
  const float u = tau * tau, u2 = u * u;
  const float high = (0.99978092f - u * 0.9943812f) + u2 * (0.93343658f - u * 0.61672696f);
  return {2 * tau * ((0.99999999f - u * 0.99999684f) + u2 * high), tau};
}
__device__ __forceinline__ Angle<double> half_of(double difference, double pq, bool turns) {
  const double over_root = inverse_root(difference * difference + (pq * pq + 1e-200));
  const double cosine2 = 0.5 + 0.5 * fabs(difference) * over_root;  // of half of the angle, squared
  const double secant = inverse_root(cosine2);
  const double sine = 0.5 * over_root * secant * (!turns ? 0.0 : difference < 0 ? -pq : pq);
  return {sine, sine * inverse(1 + cosine2 * secant)};
}

// Makes two rows orthogonal; true if they were far off. kFresh: norms are made anew; else they are
// what the rotations before left of them.
template <bool kFresh, class T, int N>
__device__ __forceinline__ bool rotate(RowPair<T, N>& r) {
  // Two roundings of the product of the norms, which are halves of squares here; squared.
  constexpr T kNoise = 16 * Precision<T>::epsilon * Precision<T>::epsilon;
  const T pq = row_sum(dot(r.p, r.q));
  if (kFresh) {
    r.pp = T(0.5) * row_sum(dot(r.p, r.p));
    r.qq = T(0.5) * row_sum(dot(r.q, r.q));
  }
  const T difference = r.qq - r.pp, square = pq * pq, noise = kNoise * (r.pp * r.qq);
  const Angle<T> angle = half_of(difference, pq, square > noise);
#pragma unroll
  for (int i = 0; i < N / 8; ++i) turn(angle.sine, angle.half, r.p[i], r.q[i]);
  const T change = pq - angle.sine * (angle.half * pq + difference);
  r.pp -= angle.sine * change;
  r.qq += angle.sine * change;
  return square > 1024 * noise;
}

// Row `lanes` / 8 further takes the place of Q's.
template <class T, int N>
__device__ __forceinline__ void pass_on(RowPair<T, N>& r, int lanes) {
  r.qq = __shfl_xor_sync(0xffffffffu, r.qq, lanes);
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    r.q[i] = __shfl_xor_sync(0xffffffffu, r.q[i], lanes);
  }
}

// P of the lanes on one side and Q of those on the other change places: `low` lanes keep P.
template <class T, int N>
__device__ __forceinline__ void regroup(RowPair<T, N>& r, int lanes, bool low) {
  const T norm = __shfl_xor_sync(0xffffffffu, low ? r.qq : r.pp, lanes);
  r.pp = low ? r.pp : norm;
  r.qq = low ? norm : r.qq;
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    const T other = __shfl_xor_sync(0xffffffffu, low ? r.q[i] : r.p[i], lanes);
    r.p[i] = low ? r.p[i] : other;
    r.q[i] = low ? other : r.q[i];
  }
}

// Rotations of the rows of the first meeting until none of a whole sweep was far off; unit rows are
// left in the basis. Returns the sweeps that took. No barrier before, none after.
template <class T, int N>
__device__ __forceinline__ int one_sided_sweeps(const EigenShared<T, N>& s, RowPair<T, N>& r) {
  constexpr int kMeetings = N / 4 - 1, kFirst = N / 8;
  const int warp = place().warp, j = place().lane / 8;
  // This warp's blocks when block i meets block i XOR partner.
  int partner = kFirst, block_p = warp, done = 0, quiet = 0;
  while (true) {
    bool far = rotate<true>(r);
    pass_on(r, 8);
    far |= rotate<false>(r);
    pass_on(r, 16);
    far |= rotate<false>(r);
    pass_on(r, 8);
    far |= rotate<false>(r);
    int row_p = 4 * block_p + j, row_q = 4 * (block_p ^ partner) + (j ^ 2);
    if (partner == 1) {
      regroup(r, 16, j < 2);
      far |= rotate<false>(r);
      pass_on(r, 8);
      far |= rotate<false>(r);
      regroup(r, 8, j % 2 == 0);
      far |= rotate<false>(r);
      row_p = 4 * (j < 2 ? block_p : block_p ^ 1) + (-j & 3);
      row_q = row_p ^ 1;
    }
    __syncwarp();  // other lanes of this warp have read these places
    ++done;
    RowPair<T, N>::store(s.basis, row_q, r.q);
    ++partner;
    const bool wraps = (partner & (partner - 1)) == 0;  // the next highest bit: another P
    if (wraps) {
      RowPair<T, N>::store(s.basis, row_p, r.p);
      partner = partner == 2 ? kFirst : partner / 4;
      block_p = (warp & (partner - 1)) | (warp & -partner) << 1;
    }
    const bool again = __syncthreads_or(far) != 0;
    RowPair<T, N>::load(s.basis, 4 * (block_p ^ partner) + j, r.q);
    if (wraps) RowPair<T, N>::load(s.basis, 4 * block_p + j, r.p);
    quiet = again ? 0 : quiet + 1;
    if (quiet == kMeetings || done == kMaxSweeps * kMeetings) break;
  }
  // Rows beyond D are zero, and stay so.
  const T pp = row_sum(dot(r.p, r.p));
  const T qq = row_sum(dot(r.q, r.q));
  RowPair<T, N>::store(s.basis, 4 * block_p + j, r.p, pp > 0 ? 1 / sqrt(pp) : T(0));
  RowPair<T, N>::store(s.basis, 4 * (block_p ^ partner) + j, r.q, qq > 0 ? 1 / sqrt(qq) : T(0));
  return (done + kMeetings - 1) / kMeetings;
}

// A row and its pivot in one number: the larger, the better, 13 bits of the pivot or more; nothing
// of a pivot that is not positive. No two rows have the same.
constexpr int kRowsOfKey = 128;
__device__ __forceinline__ unsigned pivot_key(float pivot, int row) {
  const unsigned bits = pivot > 0 ? __float_as_uint(pivot) : 0u;
  return (bits & ~(kRowsOfKey - 1u)) | static_cast<unsigned>(row);
}
__device__ __forceinline__ unsigned pivot_key(double pivot, int row) {
  const auto bits = static_cast<unsigned>(pivot > 0 ? __double_as_longlong(pivot) >> 32 : 0);
  return (bits & ~(kRowsOfKey - 1u)) | static_cast<unsigned>(row);
}

// The rows of the first meeting become those of P^T (A + shift I) P = L L^T: row k of A that of L^T
// whose pivot it was. False, in all threads, where no pivot is left that is positive. The row of
// the next pivot passes through the basis: every warp offers its best, two sets of places in turn,
// so that one barrier a column is enough. A barrier before, none after: the sweeps leave their
// first rows in the upper half of the basis, where no pivot's row passes.
template <class T, int N>
__device__ __forceinline__ bool pivoted_cholesky(const EigenShared<T, N>& s, T shift,
                                                 RowPair<T, N>& r) {
  constexpr int kEach = N / 8, kWarps = N / 8, kStride = kRowStride<N>;
  const Place me = place();
  const int row_p = 4 * me.warp + me.lane / 8, row_q = row_p + N / 2;  // of the first meeting
  RowPair<T, N>::load(s.matrix, row_p, r.p);
  RowPair<T, N>::load(s.matrix, row_q, r.q);
  // Rows beyond D stay zero.
  const T shift_p = row_p < s.D ? shift : T(0), shift_q = row_q < s.D ? shift : T(0);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (RowPair<T, N>::column(i) == row_p) r.p[i] += shift_p;
    if (RowPair<T, N>::column(i) == row_q) r.q[i] += shift_q;
  }
  // Diagonals of what is left; -1 where a row has been a pivot.
  T left_p = s.matrix[row_p * kStride + row_p], left_q = s.matrix[row_q * kStride + row_q];
  left_p = row_p < s.D ? left_p + shift : T(-1);
  left_q = row_q < s.D ? left_q + shift : T(-1);
  T pivot_p = 1, pivot_q = 1;
  // Which of this lane's columns are eliminated: now, and when a row was the pivot. What rounding
  // leaves there meets no other column, and is cut off in the end.
  unsigned gone = 0, gone_p = 0, gone_q = 0;
  unsigned key_q = pivot_key(left_q, row_q);
  unsigned key = pivot_key(left_p, row_p);
  key = key_q > key ? key_q : key;
  unsigned most = __reduce_max_sync(0xffffffffu, key);
  __syncthreads();
  for (int k = 0; k < s.D; ++k) {
    const int set = k % 2 * kWarps;
    if (key == most) {
#pragma unroll
      for (int i = 0; i < kEach; i += 4) {
        Four<T> four;
#pragma unroll
        for (int w = 0; w < 4; ++w) four.v[w] = key == key_q ? r.q[i + w] : r.p[i + w];
        store4(s.basis, (set + me.warp) * kStride + RowPair<T, N>::column(i), four);
      }
    }
    if (me.lane == 0) s.order[set + me.warp] = static_cast<int>(most);
    __syncthreads();
    int keys[kWarps];
    load_many(s.order, set, keys);
    int best = keys[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) best = keys[w] > best ? keys[w] : best;
    const int column = best & (kRowsOfKey - 1);
    const int from = (set + ((column & (N / 2 - 1)) >> 2)) * kStride;
    const T pivot = s.basis[from + column], at_p = s.basis[from + row_p];
    const T at_q = s.basis[from + row_q];
    if (best < kRowsOfKey || !(pivot > Precision<T>::tiny)) return false;
    const bool is_p = column == row_p, is_q = column == row_q;
    const T over = inverse(pivot);
    const T factor_p = is_p || left_p < 0 ? T(0) : at_p * over;
    const T factor_q = is_q || left_q < 0 ? T(0) : at_q * over;
    left_p = is_p ? T(-1) : left_p - factor_p * at_p;
    left_q = is_q ? T(-1) : left_q - factor_q * at_q;
    key_q = pivot_key(left_q, row_q);
    key = pivot_key(left_p, row_p);
    key = key_q > key ? key_q : key;
    most = __reduce_max_sync(0xffffffffu, key);  // goes on while rows are subtracted
    pivot_p = is_p ? pivot : pivot_p;
    pivot_q = is_q ? pivot : pivot_q;
    gone_p = is_p ? gone : gone_p;
    gone_q = is_q ? gone : gone_q;
    gone |= (column >> 2 & 7) == (me.lane & 7) ? 1u << ((column >> 5) * 4 + (column & 3)) : 0u;
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      const Four<T> four = load4(s.basis, from + RowPair<T, N>::column(i));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        r.p[i + w] -= factor_p * four.v[w];
        r.q[i + w] -= factor_q * four.v[w];
      }
    }
  }
  const T scale_p = 1 / sqrt(pivot_p), scale_q = 1 / sqrt(pivot_q);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    r.p[i] = (gone_p >> i & 1u) != 0 ? T(0) : scale_p * r.p[i];
    r.q[i] = (gone_q >> i & 1u) != 0 ? T(0) : scale_q * r.q[i];
  }
  return true;
}

// A bound of |A|_2, at most N^(1/8) times it: |A^4|_F^(1/4). A^2 takes the place of the basis.
// Barriers inside.
template <class T, int N>
__device__ T norm_bound(const EigenShared<T, N>& s) {
  {
    BlockTile<T, N> square;
    add_over_rows(square, N, s.matrix, s.matrix);
    __syncthreads();
    square.store(s.basis);
  }
  __syncthreads();
  BlockTile<T, N> fourth;
  add_over_rows(fourth, N, s.basis, s.basis);
  T sum = 0;
  fourth.each([&](int, int, T entry) { sum += entry * entry; });
  return sqrt(sqrt(sqrt(block_sum(sum, s.scratch))));
}

// The eigensystem of A [D, D], whose both triangles are in the views' matrix: V^T in the basis,
// values in no order. Where A is not finite, NaN. Returns the sweeps, which begin from the start
// [D, D] unless it is null or not orthogonal. `a` has the lower triangle of A once more; `global`
// [D, D] is scratch. To be called by a block of 4 N threads. Barriers before and between.
template <class T, int N>
__device__ int block_eigh(const EigenShared<T, N>& s, const T* a, const T* start, T* global) {
  constexpr bool kBoth = EigenShared<T, N>::kBoth;
  const int D = s.D;
  __syncthreads();
  const T largest = largest_entry<N>(s.matrix, s.scratch);
  const bool finite = largest <= Precision<T>::largest;
  if (threadIdx.x == 0) s.scratch[EigenShared<T, N>::kLargest] = finite ? largest : T(0);
  __syncthreads();
  if (!finite) {  // for this matrix alone
    fill_rows<N>(s.basis, [](int, int, int) { return not_a_number<T>(); });
    const int k = static_cast<int>(threadIdx.x);
    if (k < N) s.values[k] = not_a_number<T>();
    return 0;
  }
  const auto rescale = [&] {
    const Scale<T> scale = s.scale();
    fill_rows<N>(s.matrix, [&](int, int, int at) { return scale.apply(s.matrix[at]); });
    __syncthreads();
  };
  const auto load_again = [&] {
    __syncthreads();
    load_symmetric<N>(D, a, s.matrix);
    __syncthreads();
    rescale();
  };
  const bool warm = usable_start(s, start);
  if (kBoth || start == nullptr) {
    rescale();
  } else {
    load_again();  // the start was in the place of A
  }
  RowPair<T, N> rows;
  T bound = 0;
  while (true) {
    if (warm) change_basis(s, start);
    const T shift = bound + 8 * static_cast<T>(D) * Precision<T>::epsilon * (1 + bound);
    if (pivoted_cholesky(s, shift, rows) || bound > 0) break;
    if (!kBoth || warm) load_again();  // rows of pivots were in its place, or another basis
    bound = norm_bound(s);
    if (!kBoth) load_again();
  }
  const int sweeps = one_sided_sweeps(s, rows);
  if (warm) leave_basis(s, start);
  if constexpr (kBoth) {
    if (warm) load_again();  // A itself, not what it was in another basis
  } else {
    const Place me = place();
    const Scale<T> scale = s.scale();
    for (int i = me.warp; i < D; i += me.warps) {
      for (int j = me.lane; j <= i; j += 32) {
        global[i * D + j] = global[j * D + i] = scale.apply(a[i * D + j]);
      }
    }
  }
  refine(s, Beside<T, N>{s, global});
  return sweeps;
}

}  // namespace cuda
}  // namespace fastwhiten
