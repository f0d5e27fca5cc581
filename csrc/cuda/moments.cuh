// What a shrinkage intensity is made of, and its formula (stated in intensity.cuh): for the kernels
// of that stage and for the block that does a whole forward.
#pragma once

#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

enum Method : int { kNone = 0, kFixed = 1, kOas = 2, kLedoitWolf = 3 };

template <class T>
struct IntensityArguments {
  int64_t width, rows;
  int method;           // kFixed, kOas or kLedoitWolf
  T value;              // of kFixed
  const T* covariance;  // [G, D, D]
  const T* running;     // [G, D, D] or null
  T batch_weight;
  const T* p;  // [M] or null
  T* rho;      // [G]
};

// The sums that an intensity is made of: trace S', |S'|^2, |S|^2, sum p^2, sum_n p_n |xc_n|^4.
enum Moment : int { kTrace, kSquare, kOwn, kWeights, kFourth, kMoments };

// This thread's part of the sums over S, S' and p.
template <class T>
__device__ __forceinline__ void add_moments(const IntensityArguments<T>& in, int64_t g,
                                            T (&sums)[kMoments]) {
  const Place me = place();
  const int64_t D = in.width;
  const T share = in.running != nullptr ? in.batch_weight : T(1);
  for (int64_t i = me.warp; i < D; i += me.warps) {
    for (int64_t j = me.lane; j < D; j += 32) {
      const int64_t e = (g * D + i) * D + j;
      const T batch = in.covariance[e];
      const T old = in.running != nullptr ? (1 - share) * in.running[e] : T(0);
      const T blended = share * batch + old;
      if (i == j) sums[kTrace] += blended;
      sums[kSquare] += blended * blended;
      sums[kOwn] += batch * batch;
    }
  }
  for (int64_t r = threadIdx.x; in.p != nullptr && r < in.rows; r += blockDim.x) {
    sums[kWeights] += in.p[r] * in.p[r];
  }
}

// rho from the complete sums. Where S' is not finite: 1, and W is NaN whatever rho.
template <class T>
__device__ __forceinline__ T intensity_of(const IntensityArguments<T>& in,
                                          const T (&sums)[kMoments]) {
  const T share = in.running != nullptr ? in.batch_weight : T(1), size = static_cast<T>(in.width);
  const T rows = (in.p != nullptr ? 1 / sums[kWeights] : static_cast<T>(in.rows)) / (share * share);
  const T trace = sums[kTrace], square = sums[kSquare];
  const T distance = square - trace * trace / size;
  T numerator = (1 - 2 / size) * square + trace * trace;
  T denominator = (rows + 1 - 2 / size) * distance;
  if (in.method == kLedoitWolf) {
    const T noise = (sums[kFourth] - sums[kOwn]) / rows;
    numerator = noise > distance ? distance : noise;  // NaN stays NaN
    denominator = distance;
  }
  const T ratio = denominator > 0 ? numerator / denominator : T(1);
  return ratio < 0 ? T(0) : ratio > 1 ? T(1) : ratio;
}

}  // namespace cuda
}  // namespace fastwhiten
