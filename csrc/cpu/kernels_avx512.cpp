// The inner kernels for x86-64 with AVX-512 F, BW, DQ and VL (servers since 2017).
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
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
// With such versions GCC 12 writes the sums of multiply to memory in every round: .6 of the speed.
#pragma GCC optimize("no-version-loops-for-strides")
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace fastwhiten::cpu::avx512 {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kBlockRows =
    8;  // 16 sums hide the latency of 4 at two per cycle, and 8 x 32 divides D = 64
constexpr int kBlockVectors = 3;
constexpr bool kFused = true;
// 1.8 times as fast as MKL's ssyevd on one thread at 128, 2.2 at 64 (Zen 5). In float64 divide and
// conquer takes over earlier: 1.4 times as fast at 80, as fast at 64.
template <class T>
constexpr int64_t kMostQl = std::is_same_v<T, float> ? 128 : 64;
constexpr int64_t kMostDivided = 1024;  // 1.9 times as fast as ssyevd at 129, 2.3 to 2.9 from 192
inline __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline bool all_above(__m256d v, double bound) {
  return _mm256_cmp_pd_mask(v, _mm256_set1_pd(bound), _CMP_GT_OQ) == 15;
}
inline void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
inline void stream(double* p, __m512d v) { _mm512_stream_pd(p, v); }
inline void end_stream() { _mm_sfence(); }
}  // namespace
}  // namespace fastwhiten::cpu::avx512

#define FASTWHITEN_ISA avx512
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
