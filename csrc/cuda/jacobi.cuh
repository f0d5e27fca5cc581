// What the Jacobi eigensolvers share: plane rotations, the order of pairs, scaling, thresholds.
//
// A sweep rotates every pair (p, q) once, so that a_pq becomes 0: t = tan of the smaller angle,
// t = 2 a_pq sign(d) / (|d| + sqrt(d^2 + 4 a_pq^2)), d = a_qq - a_pp. A pair is left alone when
// |a_pq| <= tol sqrt(|a_pp a_qq|): a threshold relative to the norm of the matrix would leave
// eigenvectors of small eigenvalues mixed, which S^-1/2 magnifies. Disjoint pairs are rotated side
// by side (a round), in the order of a round-robin tournament: n - 1 rounds a sweep, n even.
#pragma once

#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

// Convergence is quadratic: 6 to 9 sweeps, with the last one idle. The cap only bounds the time.
constexpr int kMaxSweeps = 30;

template <class T>
struct Precision;
template <>
struct Precision<float> {
  static constexpr float epsilon = 1.1920929e-7f;
  static constexpr float largest = 3.4028234664e38f;
  static constexpr float tiny = 1.1754944e-38f * 64;  // of a matrix whose largest entry is 1 to 2
};
template <>
struct Precision<double> {
  static constexpr double epsilon = 2.220446049250313e-16;
  static constexpr double largest = 1.7976931348623157e308;
  static constexpr double tiny = 2.2250738585072014e-308 * 64;
};

// How far from the identity an entry of Q^T Q may be for Q to serve as a start. Eigenvectors of the
// last step are within four roundings; what was averaged, or rounded to a narrower type, is not,
// and would leave its error in the eigenvectors.
template <class T>
constexpr T kStartDefect = 32 * Precision<T>::epsilon;

template <class T>
__device__ __forceinline__ T not_a_number() {
  return static_cast<T>(nanf(""));
}

// A rotation by the sine and tau = tan(angle / 2), which turn() applies: what a small rotation
// changes is then rounded relative to the change, and a thousand of them do not stretch a vector.
template <class T>
struct Rotation {
  T sine, half, tangent;
};

// (p, q) = (cos p - sin q, sin p + cos q), cos = 1 - sin tau.
template <class T>
__device__ __forceinline__ void turn(T sine, T half, T& p, T& q) {
  const T to_p = q + half * p, to_q = p - half * q;
  p -= sine * to_p;
  q += sine * to_q;
}

// The rotation that makes a_pq zero; the diagonal becomes a_pp - tangent a_pq, a_qq + tangent a_pq.
// For entries of at most 2^60 in size.
template <class T>
__device__ __forceinline__ Rotation<T> rotation(T pp, T qq, T pq) {
  const T difference = qq - pp, twice = 2 * pq;
  const T root = sqrt(difference * difference + twice * twice);
  const T tangent = (difference < 0 ? -twice : twice) / (fabs(difference) + root);
  const T cosine = 1 / sqrt(1 + tangent * tangent);
  const T sine = tangent * cosine;
  return {sine, sine / (1 + cosine), tangent};
}

// How far a pair is from orthogonal. Pairs off by more than noise are rotated. Convergence is
// quadratic, so a sweep is the last one when it finds none that is off by more than some noise:
// waiting for silence would take twice as long where eigenvalues coincide.
enum Off : int { kNoise = 0, kSmall = 1, kLarge = 2 };

template <class T>
__device__ __forceinline__ Off off_diagonal(T pp, T qq, T pq) {
  const T size = fabs(pq);
  // The roots apart: the product of two small numbers could underflow to a threshold of zero.
  const T noise = 2 * Precision<T>::epsilon * (sqrt(fabs(pp)) * sqrt(fabs(qq)));
  if (!(size > noise && size > Precision<T>::tiny)) return kNoise;
  return size > 32 * noise ? kLarge : kSmall;
}

__device__ __forceinline__ int exponent_bits(float x) {
  return static_cast<int>(__float_as_uint(x) >> 23 & 0xffu);
}
__device__ __forceinline__ int exponent_bits(double x) {
  return static_cast<int>(__double_as_longlong(x) >> 52 & 0x7ff);
}
__device__ __forceinline__ float power_of_two(int bits, float) {
  return __uint_as_float(static_cast<unsigned>(bits) << 23);
}
__device__ __forceinline__ double power_of_two(int bits, double) {
  return __longlong_as_double(static_cast<long long>(bits) << 52);
}

// Powers of two whose product brings the largest entry of a matrix to 1 ... 4, so that nothing
// overflows or underflows on the way. Two factors: one alone may not be representable.
template <class T>
struct Scale {
  T lift = 1, factor = 1;
  __device__ explicit Scale(T largest) {
    constexpr int kBias = sizeof(T) == 8 ? 1023 : 127;
    if (!(largest > 0)) return;
    if (exponent_bits(largest) == 0) lift = T(1 << 30) * T(1 << 30);  // a subnormal number
    const int bits = 2 * kBias - exponent_bits(largest * lift);
    factor = power_of_two(bits < 1 ? 1 : bits, T(0));
  }
  __device__ T apply(T x) const { return x * lift * factor; }
  __device__ T undo(T x) const { return x / factor / lift; }
};

// |x|; infinity for NaN and infinity, so that the largest of many tells whether all are finite.
template <class T>
__device__ __forceinline__ T finite_magnitude(T x) {
  const T size = fabs(x);
  return size <= Precision<T>::largest ? size : static_cast<T>(INFINITY);
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, lanes);
    value = other > value ? other : value;
  }
  return value;
}

}  // namespace cuda
}  // namespace fastwhiten
