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
void run_backward_apply(const Device&, const BackwardApply<In, T>& args) {
  const Plan plan = make_plan(args.s);
  const int64_t D = args.s.width, M = args.s.rows(), G = args.s.groups, ldb = padded<T>(D);
  const T uniform = T(1) / static_cast<T>(M);
  Buffer<T> B(G * 2 * D * ldb), grad_shift(G * D);
  right_factor(G, D, args.matrix, args.inner, args.gamma, args.p == nullptr ? uniform : T(1),
               B.get());
  for (int64_t c = 0; c < G * D; ++c)  // of these groups: C can be more, it is the row stride
    grad_shift[c] = args.p == nullptr ? args.grad_sum[c] * uniform : args.grad_sum[c];
  const auto unit = [&](int64_t begin, int64_t end) {
    // planes: [2 D, m], args.grad'args.s channels then args.x'args.s; rows: [m, 2 D],
    // args.grad'args.s columns then args.x'args.s
    Buffer<T> panel(panel_size(args.s, plan, 2 * D));
    const int64_t ld = panel_stride(args.s, plan, 2 * D);
    T* x_part = panel.get() + (args.s.planes() ? D * ld : D);
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u % G, first = u / G * plan.tile_rows;
      Ahead ahead = u + 1 < end ? ahead_of(args.s, plan, u + 1, args.grad, args.x) : Ahead{};
      for_panels(plan, first, std::min(first + plan.tile_rows, M), [&](int64_t r, int64_t m) {
        load_panel(args.s, plan, Scale::kShift, args.grad, g, r, m, grad_shift.get() + g * D,
                   args.p, panel.get(), ld);
        load_panel(args.s, plan, Scale::kResult, args.x, g, r, m, args.mean + g * D, args.p, x_part,
                   ld);
        multiply_panel<In, T>(args.s, plan, panel.get(), ld, 2 * D, B.get() + g * 2 * D * ldb, g, r,
                              m, args.dx, ahead);
      });
    }
  };
  if (plan.wide) return unit(0, G * plan.tiles);
  parallel(G * plan.tiles, 4.0 * static_cast<double>(args.s.numel()) * static_cast<double>(D),
           unit);
}

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_backward_apply(const Device&, const BackwardApply<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
