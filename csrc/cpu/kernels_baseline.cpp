// The inner kernels for what every processor of this architecture has (SSE2, NEON).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace fastwhiten::cpu::baseline {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kBlockRows =
    4;  // 8 sums of 16 registers; a third vector leaves none for the broadcasts
constexpr int kBlockVectors = 2;
constexpr bool kFused = false;
template <class T>
constexpr int64_t kMostQl = 64;      // 1.1 times as fast as MKL's ssyevd there, 2.1 at 32
constexpr int64_t kMostDivided = 0;  // .8 of ssyevd's speed at 129, .7 at 1024
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
template <class V>
inline bool all_above(V v, double bound) {
  return v[0] > bound && v[1] > bound;
}
template <class T, class V>
inline void stream(T* p, V v) {
  *reinterpret_cast<V*>(p) = v;
}
inline void end_stream() {}
}  // namespace
}  // namespace fastwhiten::cpu::baseline

#define FASTWHITEN_ISA baseline
// clang-format off: each needs the ones before it
#include "kernels_impl.h"
#include "tridiagonal_impl.h"
#include "ql_impl.h"
#include "ql_lanes_impl.h"
#include "eigen_impl.h"
#include "divide_impl.h"
// clang-format on
