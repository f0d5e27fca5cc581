// The inner kernels for what every processor of this architecture has (SSE2, NEON).
#include <utility>

#include "kernels.h"

namespace fastwhiten::cpu::baseline {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kBlockRows =
    4;  // 8 sums of 16 registers; a third vector leaves none for the broadcasts
constexpr int kBlockVectors = 2;
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
}  // namespace
}  // namespace fastwhiten::cpu::baseline

#define FASTWHITEN_ISA baseline
#include "kernels_impl.h"
