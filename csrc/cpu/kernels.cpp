// Chooses the inner kernels: once, when the first op runs.
#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <string>

namespace fastwhiten::cpu {

#define FASTWHITEN_DECLARE(isa)        \
  namespace isa {                      \
  template <class T>                   \
  const ProductKernels<T>& products(); \
  template <class T>                   \
  const EigenKernels<T>& eigen();      \
  template <class In, class T>         \
  const TileKernels<In, T>& tiles();   \
  }
FASTWHITEN_DECLARE(baseline)
FASTWHITEN_DECLARE(avx2)
FASTWHITEN_DECLARE(avx512)
#undef FASTWHITEN_DECLARE

namespace {

enum Capability { kBaseline, kAvx2, kAvx512 };

Capability find_capability() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* variable = std::getenv("FASTWHITEN_CPU_CAPABILITY");
  const std::string asked = variable == nullptr ? "" : variable;
  __builtin_cpu_init();
  if (asked == "baseline" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return kBaseline;
  }
  if (asked == "avx2" || !__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return kAvx2;
  }
  return kAvx512;
#else
  return kBaseline;
#endif
}

Capability capability() {
  static const Capability found = find_capability();
  return found;
}

}  // namespace

template <class T>
const ProductKernels<T>& product_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (capability() == kAvx512) return avx512::products<T>();
  if (capability() == kAvx2) return avx2::products<T>();
#endif
  return baseline::products<T>();
}
template const ProductKernels<float>& product_kernels();
template const ProductKernels<double>& product_kernels();

template <class T>
const EigenKernels<T>& eigen_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (capability() == kAvx512) return avx512::eigen<T>();
  if (capability() == kAvx2) return avx2::eigen<T>();
#endif
  return baseline::eigen<T>();
}
template const EigenKernels<float>& eigen_kernels();
template const EigenKernels<double>& eigen_kernels();

template <class In, class T>
const TileKernels<In, T>& tile_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (capability() == kAvx512) return avx512::tiles<In, T>();
  if (capability() == kAvx2) return avx2::tiles<In, T>();
#endif
  return baseline::tiles<In, T>();
}
#define FASTWHITEN_TILES(In, T) template const TileKernels<In, T>& tile_kernels<In, T>();
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_TILES)
#undef FASTWHITEN_TILES

Choice choice() {
  static const Choice found = [] {
    const char* variable = std::getenv("FASTWHITEN_CPU_LIBRARY");
    const std::string asked = variable == nullptr ? "" : variable;
    return asked == "1" ? Choice::kLibrary : asked == "0" ? Choice::kOurs : Choice::kFaster;
  }();
  return found;
}

template <class T>
Solver eigen_solver(int64_t n) {
  if (choice() == Choice::kLibrary) return Solver::kLibrary;
  const EigenKernels<T>& own = eigen_kernels<T>();
  if (choice() == Choice::kOurs) return n <= own.most_ql ? Solver::kQl : Solver::kDivide;
#if defined(__x86_64__) && defined(__GNUC__)
  // Half of the width of others with AVX2. QL has .8 to 1.07 of LAPACK's speed at 128, 1 to 1.25 at
  // 64; divide and conquer is not measured there.
  constexpr int64_t kFirstZen = 64;
  if (capability() == kAvx2 && __builtin_cpu_is("znver1")) {
    return n <= std::min(own.most_ql, kFirstZen) ? Solver::kQl : Solver::kLibrary;
  }
#endif
  if (n <= own.most_ql) return Solver::kQl;
  return n <= own.most_divided ? Solver::kDivide : Solver::kLibrary;
}
template Solver eigen_solver<float>(int64_t);
template Solver eigen_solver<double>(int64_t);

const char* cpu_capability() {
  const char* const names[] = {"baseline", "avx2", "avx512"};
  return names[capability()];
}

}  // namespace fastwhiten::cpu
