// y_n = ((x_n - mean) W_g) * gamma + beta.
//
// gamma is folded into the columns of W, and beta is a row more: y = [x - mean | 1] [W diag(gamma)
// ; beta], one product per tile. The mean is subtracted from x before the product (x W - mean W
// would cancel when |mean| >> std). Bytes: x read once, y written once. Determinism: every row's
// result is one dot product.
#include "product.h"
#include "stages.h"

namespace fastwhiten::cpu {
namespace {

// [W diag(gamma) ; beta] of every group, with rows padded for the inner kernels: [G, K, padded(D)];
// K = D without beta.
template <class T>
void right_factor(int64_t G, int64_t D, int64_t K, const T* matrix, const T* gamma, const T* beta,
                  T* B) {
  const int64_t ld = padded<T>(D);
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t i = 0; i < K; ++i, B += ld) {
      const T* row = i < D ? matrix + (g * D + i) * D : beta + g * D;  // [D]
      const bool scaled = i < D && gamma != nullptr;
      for (int64_t j = 0; j < D; ++j) B[j] = scaled ? row[j] * gamma[g * D + j] : row[j];
      std::fill(B + D, B + ld, T(0));
    }
  }
}

}  // namespace

template <class In, class T>
void run_apply(const Device&, const Apply<In, T>& args) {
  const Plan plan = make_plan(args.s);
  const int64_t D = args.s.width, M = args.s.rows(), G = args.s.groups, ldb = padded<T>(D);
  const int64_t K = args.beta == nullptr ? D : D + 1;
  const bool as_is = args.gamma == nullptr && args.beta == nullptr && ldb == D;
  Buffer<T> packed(as_is ? 0 : G * K * ldb);
  if (!as_is) right_factor(G, D, K, args.matrix, args.gamma, args.beta, packed.get());
  const T* B = as_is ? args.matrix : packed.get();  // [G, K, ldb]
  const auto unit = [&](int64_t begin, int64_t end) {
    Buffer<T> panel(panel_size(args.s, plan, K));
    const int64_t ld = panel_stride(args.s, plan, K);
    for (int64_t r = 0; K > D && r < plan.panel_rows; ++r) {  // beta's factor
      panel[args.s.planes() ? D * ld + r : r * ld + D] = T(1);
    }
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u % G, first = u / G * plan.tile_rows;
      Ahead ahead = u + 1 < end ? ahead_of(args.s, plan, u + 1, args.x) : Ahead{};
      for_panels(plan, first, std::min(first + plan.tile_rows, M), [&](int64_t r, int64_t m) {
        load_panel<In, T>(args.s, plan, Scale::kNone, args.x, g, r, m, args.mean + g * D, nullptr,
                          panel.get(), ld);
        multiply_panel(args.s, plan, panel.get(), ld, K, B + g * K * ldb, g, r, m, args.y, ahead);
      });
    }
  };
  if (plan.wide) return unit(0, G * plan.tiles);
  parallel(G * plan.tiles, 2.0 * static_cast<double>(args.s.numel()) * static_cast<double>(D),
           unit);
}

#define FASTWHITEN_INSTANTIATE(In, T) template void run_apply(const Device&, const Apply<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
