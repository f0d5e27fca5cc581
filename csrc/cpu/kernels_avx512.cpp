// The inner kernels for x86-64 with AVX-512 F, BW, DQ and VL (servers since 2017).
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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace fastwhiten::cpu::avx512 {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kBlockRows =
    8;  // 16 sums hide the latency of 4 at two per cycle, and 8 x 32 divides D = 64
constexpr int kBlockVectors = 3;
inline __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
}  // namespace
}  // namespace fastwhiten::cpu::avx512

#define FASTWHITEN_ISA avx512
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
