// y_n = ((x_n - mean) W_g) * gamma + beta.
//
// gamma is folded into the columns of W: y = (x - mean) (W diag(gamma)) + beta, one product per
// tile. The mean is subtracted from x before the product (x W - mean W would cancel when |mean| >>
// std). Bytes: x read once, y written once. Determinism: every row's result is one dot product.
#include "../ops/apply.h"

#include "product.h"

namespace fastwhiten::cpu {
namespace {

template <class In, class T>
void run(const Layout& s, const In* x, const T* mean, const T* matrix, const T* gamma,
         const T* beta, In* y) {
  const Plan plan = make_plan(s);
  const int64_t D = s.width, M = s.rows(), G = s.groups;
  Buffer<T> scaled(gamma == nullptr ? 0 : G * D * D);  // W diag(gamma)
  for (int64_t i = 0; gamma != nullptr && i < G * D; ++i) {
    const T* of_group = gamma + i / D * D;
    for (int64_t j = 0; j < D; ++j) scaled[i * D + j] = matrix[i * D + j] * of_group[j];
  }
  const T* W = gamma == nullptr ? matrix : scaled.get();  // [G, D, D]
  const auto unit = [&](int64_t begin, int64_t end) {
    Buffer<T> buffer(D * plan.tile_rows);
    const int64_t ld = s.planes() ? plan.tile_rows : D;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u % G, r0 = u / G * plan.tile_rows, m = std::min(plan.tile_rows, M - r0);
      load_tile<In, T>(s, plan, Scale::kNone, x, g, r0, m, mean + g * D, nullptr, buffer.get(), ld);
      multiply_tile(s, plan, buffer.get(), ld, D, W + g * D * D, g, r0, m,
                    beta == nullptr ? nullptr : beta + g * D, y);
    }
  };
  if (plan.wide) return unit(0, G * plan.tiles);
  parallel(G * plan.tiles, 2.0 * static_cast<double>(s.numel()) * static_cast<double>(D), unit);
}

Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& matrix, const OptionalTensor& gamma,
             const OptionalTensor& beta) {
  const Layout s = check_apply(x, mean, matrix, gamma, beta);
  Tensor y = uninitialized_like(x);
  if (s.numel() == 0) return y;
  dispatch(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    run(s, data<In>(x), data<T>(mean), data<T>(matrix), data<T>(gamma), data<T>(beta),
        mutable_data<In>(y));
  });
  return y;
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("apply", TORCH_BOX(&fastwhiten::cpu::apply));
}
