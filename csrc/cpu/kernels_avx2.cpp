// The inner kernels for x86-64 with AVX2, FMA and F16C (2013 and later).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
// With such versions GCC 12 writes the sums of multiply to memory in every round: .6 of the speed.
#pragma GCC optimize("no-version-loops-for-strides")
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fastwhiten::cpu::avx2 {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kBlockRows = 6;  // 12 sums, 2 vectors of b and a broadcast in 16 registers
constexpr int kBlockVectors = 2;
constexpr bool kFused = true;
// 1.3 times as fast as MKL's ssyevd at 128, 2.1 at 64 (Zen 5); divide and conquer is as fast at
// 128. In float64 it takes over earlier: 1.2 times as fast at 80.
template <class T>
constexpr int64_t kMostQl = std::is_same_v<T, float> ? 128 : 64;
constexpr int64_t kMostDivided = 1024;  // 1.4 to 2 times as fast as ssyevd from 129 on
inline __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline bool all_above(__m256d v, double bound) {
  return _mm256_movemask_pd(_mm256_cmp_pd(v, _mm256_set1_pd(bound), _CMP_GT_OQ)) == 15;
}
inline void stream(float* p, __m256 v) { _mm256_stream_ps(p, v); }
inline void stream(double* p, __m256d v) { _mm256_stream_pd(p, v); }
inline void end_stream() { _mm_sfence(); }
}  // namespace
}  // namespace fastwhiten::cpu::avx2

#define FASTWHITEN_ISA avx2
// clang-format off: each needs the ones before it
#include "kernels_impl.h"
#include "tridiagonal_impl.h"
#include "ql_impl.h"
#include "ql_lanes_impl.h"
#include "eigen_impl.h"
#include "divide_impl.h"
// clang-format on

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
