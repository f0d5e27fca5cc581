// y_n = ((x_n - mean) W_g) * gamma + beta.
//
// gamma is folded into the columns of W: y = (x - mean) (W diag(gamma)) + beta, one product per
// tile. The mean is subtracted from x before the product (x W - mean W would cancel when |mean| >>
// std). Bytes: x read once, y written once. Determinism: every row's result is one dot product.
#include "product.h"
#include "stages.h"

namespace fastwhiten::cpu {
namespace {

// W diag(gamma) of every group, with rows padded for the inner kernels: [G, D, padded(D)].
template <class T>
void right_factor(int64_t G, int64_t D, const T* matrix, const T* gamma, T* B) {
  const int64_t ld = padded<T>(D);
  for (int64_t i = 0; i < G * D; ++i) {
    const T* scale = gamma == nullptr ? nullptr : gamma + i / D * D;  // [D]
    for (int64_t j = 0; j < D; ++j) {
      B[i * ld + j] = scale == nullptr ? matrix[i * D + j] : matrix[i * D + j] * scale[j];
    }
    std::fill(B + i * ld + D, B + (i + 1) * ld, T(0));
  }
}

}  // namespace

template <class In, class T>
void run_apply(const Device&, const Apply<In, T>& args) {
  const Plan plan = make_plan(args.s);
  const int64_t D = args.s.width, M = args.s.rows(), G = args.s.groups, ldb = padded<T>(D);
  const bool as_is = args.gamma == nullptr && ldb == D;
  Buffer<T> packed(as_is ? 0 : G * D * ldb);
  if (!as_is) right_factor(G, D, args.matrix, args.gamma, packed.get());
  const T* B = as_is ? args.matrix : packed.get();  // [G, D, ldb]
  const auto unit = [&](int64_t begin, int64_t end) {
    Buffer<T> panel(panel_size(args.s, plan, D));
    const int64_t ld = panel_stride(args.s, plan, D);
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u % G, first = u / G * plan.tile_rows;
      for_panels(plan, first, std::min(first + plan.tile_rows, M), [&](int64_t r, int64_t m) {
        load_panel<In, T>(args.s, plan, Scale::kNone, args.x, g, r, m, args.mean + g * D, nullptr,
                          panel.get(), ld);
        multiply_panel(args.s, plan, panel.get(), ld, D, B + g * D * ldb, g, r, m,
                       args.beta == nullptr ? nullptr : args.beta + g * D, args.y);
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
