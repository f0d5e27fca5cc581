// Chooses the inner kernels: once, when the first op runs.
#include "kernels.h"

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

const char* cpu_capability() {
  const char* const names[] = {"baseline", "avx2", "avx512"};
  return names[capability()];
}

}  // namespace fastwhiten::cpu
