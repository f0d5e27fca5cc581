// dx_n = (gamma * (g_n - p_n grad_sum)) W^T - p_n (x_n - mean) inner.
//
// One product of depth 2 D per tile: [ g_n - p_n grad_sum | p_n (x_n - mean) ] [ diag(gamma) W^T ;
// -inner ], with p_n folded into the right factor when it is the same for all rows. Bytes: x and
// grad read once, dx written once. Determinism: every row's result is one dot product.
#include "product.h"
#include "stages.h"

namespace fastwhiten::cpu {
namespace {

// B [G, 2 D, padded(D)]: rows j < D are gamma_j W_ij over i, rows D + i are -p inner_ij.
template <class T>
void right_factor(int64_t G, int64_t D, const T* matrix, const T* inner, const T* gamma, T p,
                  T* B) {
  const int64_t ld = padded<T>(D);
  for (int64_t g = 0; g < G; ++g) {
    T* of_grad = B + g * 2 * D * ld;  // [D, ld]
    T* of_x = of_grad + D * ld;       // [D, ld]
    product_kernels<T>().transpose(D, D, matrix + g * D * D, D, of_grad, ld);
    for (int64_t j = 0; j < D; ++j) {
      const T scale = gamma == nullptr ? T(1) : gamma[g * D + j];
      const T* of_group = inner + (g * D + j) * D;  // [D]
      for (int64_t i = 0; i < D; ++i) {
        of_grad[j * ld + i] *= scale;
        of_x[j * ld + i] = -p * of_group[i];
      }
      std::fill(of_grad + j * ld + D, of_grad + (j + 1) * ld, T(0));
      std::fill(of_x + j * ld + D, of_x + (j + 1) * ld, T(0));
    }
  }
}

}  // namespace

template <class In, class T>
void run_backward_apply(const Device&, const Layout& s, const In* x, const In* grad, const T* mean,
                        const T* grad_sum, const T* matrix, const T* inner, const T* gamma,
                        const T* p, In* dx) {
  const Plan plan = make_plan(s);
  const int64_t D = s.width, M = s.rows(), G = s.groups, ldb = padded<T>(D);
  const T uniform = T(1) / static_cast<T>(M);
  Buffer<T> B(G * 2 * D * ldb), grad_shift(G * D);
  right_factor(G, D, matrix, inner, gamma, p == nullptr ? uniform : T(1), B.get());
  for (int64_t c = 0; c < G * D; ++c)  // of these groups: C can be more, it is the row stride
    grad_shift[c] = p == nullptr ? grad_sum[c] * uniform : grad_sum[c];
  const auto unit = [&](int64_t begin, int64_t end) {
    // planes: [2 D, m], grad's channels then x's; rows: [m, 2 D], grad's columns then x's
    Buffer<T> panel(panel_size(s, plan, 2 * D));
    const int64_t ld = panel_stride(s, plan, 2 * D);
    T* x_part = panel.get() + (s.planes() ? D * ld : D);
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u % G, first = u / G * plan.tile_rows;
      for_panels(plan, first, std::min(first + plan.tile_rows, M), [&](int64_t r, int64_t m) {
        load_panel(s, plan, Scale::kShift, grad, g, r, m, grad_shift.get() + g * D, p, panel.get(),
                   ld);
        load_panel(s, plan, Scale::kResult, x, g, r, m, mean + g * D, p, x_part, ld);
        multiply_panel<In, T>(s, plan, panel.get(), ld, 2 * D, B.get() + g * 2 * D * ldb, g, r, m,
                              nullptr, dx);
      });
    }
  };
  if (plan.wide) return unit(0, G * plan.tiles);
  parallel(G * plan.tiles, 4.0 * static_cast<double>(s.numel()) * static_cast<double>(D), unit);
}

#define FASTWHITEN_INSTANTIATE(In, T)                                                            \
  template void run_backward_apply(const Device&, const Layout&, const In*, const In*, const T*, \
                                   const T*, const T*, const T*, const T*, const T*, In*);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
