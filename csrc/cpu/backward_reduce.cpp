// grad_sum [C] = sum_n g_n ; cross [G, D, D] = sum_n (x_n - mean) g_n^T (row: x's channel).
//
// One product per tile; grad is read in place where it has the accumulation dtype.
// Bytes: x and grad once from memory, grad a second time from cache (its sum).
// Determinism: tiles are added in order within a chunk, chunks in order at the end; no atomics.
#include <type_traits>

#include "product.h"
#include "stages.h"

namespace fastwhiten::cpu {
namespace {

template <class T>
struct Panels {  // one thread's buffers
  T *x, *grad;
  int64_t ld_x, ld_grad;
};

// cross [D, D] (+)= the centred panel of x with grad's rows [r0, r0 + m); grad_sum [D] += grad's
// rows.
template <class In, class T>
void add_rows_cross(const Layout& s, const Plan& plan, const Panels<T>& panels, const In* grad,
                    const T* zeros, int64_t g, int64_t r0, int64_t m, bool add, T* cross,
                    T* grad_sum, Ahead& ahead) {
  const int64_t D = s.width;
  const T* right = panels.grad;
  int64_t ld = panels.ld_grad;
  if (std::is_same_v<In, T> && (plan.wide || padded<T>(D) == D)) {  // grad serves where it lies
    right = reinterpret_cast<const T*>(grad + offset(s, r0, g * D));
    ld = s.channels;
  } else {
    load_panel<In, T>(s, plan, Scale::kNone, grad, g, r0, m, zeros, nullptr, panels.grad, ld);
  }
  add_rows_product(plan.wide, D, m, panels.x, panels.ld_x, right, ld, cross, add, false, ahead);
  product_kernels<T>().add_rows(m, D, right, ld, grad_sum);
}

// The same for planes; of a narrow group the panel of x is rows, and cross its transpose.
template <class In, class T>
void add_planes_cross(const Layout& s, const Plan& plan, const Panels<T>& panels, const In* grad,
                      const T* zeros, int64_t g, int64_t r0, int64_t m, bool add, T* cross,
                      T* grad_sum, Ahead& ahead) {
  const int64_t D = s.width;
  tile_kernels<In, T>().add_sums(s, grad, g, r0, m, zeros, nullptr, grad_sum);
  const T* of_grad = panels.grad;  // [D, m]
  int64_t ld = panels.ld_grad;
  if (std::is_same_v<In, T> && r0 % s.length + m <= s.length) {  // within one image: where it lies
    of_grad = reinterpret_cast<const T*>(grad + offset(s, r0, g * D));
    ld = s.length;
  } else {
    load_panel<In, T>(s, plan, Scale::kNone, grad, g, r0, m, zeros, nullptr, panels.grad, ld);
  }
  if (plan.wide) {
    gemm(false, true, D, D, m, T(1), panels.x, panels.ld_x, of_grad, ld, add ? T(1) : T(0), cross,
         D);
  } else {
    add_narrow_product(D, m, of_grad, ld, 1, panels.x, panels.ld_x, cross, add, false, ahead);
  }
}

// The tiles [first, last) of group g.
template <class In, class T>
void reduce_chunk(const Layout& s, const Plan& plan, const In* x, const In* grad, const T* mean,
                  const T* zeros, int64_t g, int64_t first, int64_t last, T* cross, T* grad_sum) {
  const int64_t K = padded<T>(s.width), ld = panel_stride(s, plan, K);
  const int64_t size = panel_size(s, plan, K), narrow_size = plan.panel_rows * K;
  Buffer<T> x_panel(plan.wide ? size : narrow_size), grad_panel(size);
  if (!plan.wide) {  // the padding is read
    std::fill_n(x_panel.get(), narrow_size, T(0));
    std::fill_n(grad_panel.get(), size, T(0));
  }
  const Panels<T> panels = {x_panel.get(), grad_panel.get(), plan.wide ? ld : K, ld};
  std::fill_n(grad_sum, s.width, T(0));
  for (int64_t t = first; t < last; ++t) {
    const int64_t r0 = t * plan.tile_rows, r1 = std::min(r0 + plan.tile_rows, s.rows());
    Ahead ahead = t + 1 < last ? ahead_of(s, plan, (t + 1) * s.groups + g, x, grad) : Ahead{};
    for_panels(plan, r0, r1, [&](int64_t r, int64_t m) {
      const T* shift = mean + g * s.width;
      if (!plan.wide) {
        tile_kernels<In, T>().load_rows(s, x, g, r, m, shift, nullptr, panels.x, K);
      } else {
        load_panel<In, T>(s, plan, Scale::kNone, x, g, r, m, shift, nullptr, panels.x, ld);
      }
      const auto add = s.planes() ? &add_planes_cross<In, T> : &add_rows_cross<In, T>;
      add(s, plan, panels, grad, zeros, g, r, m, t > first || r > r0, cross, grad_sum, ahead);
    });
  }
}

// out [n] = the sum of from [count, n].
template <class T>
void add_up(int64_t count, int64_t n, const T* from, T* out) {
  std::copy_n(from, n, out);
  product_kernels<T>().add_rows(count - 1, n, from + n, n, out);
}

}  // namespace

template <class In, class T>
void run_backward_reduce(const Device&, const BackwardReduce<In, T>& args) {
  const Plan plan = make_plan(args.s);
  const int64_t D = args.s.width, G = args.s.groups, units = G * plan.chunks;
  Buffer<T> sums(units * D), zeros(D);
  Buffer<T> partial(plan.chunks == 1 ? 0 : units * D * D);
  T* products = plan.chunks == 1 ? args.cross : partial.get();  // [G, chunks, D, D]
  std::fill_n(zeros.get(), D, T(0));
  const bool flipped = args.s.planes() && !plan.wide;
  const auto unit = [&](int64_t g, int64_t k) {
    const int64_t u = g * plan.chunks + k;
    reduce_chunk(args.s, plan, args.x, args.grad, args.mean, zeros.get(), g,
                 k * plan.tiles / plan.chunks, (k + 1) * plan.tiles / plan.chunks,
                 products + u * D * D, sums.get() + u * D);
  };
  const auto finish = [&](int64_t g) {
    add_up(plan.chunks, D, sums.get() + g * plan.chunks * D, args.grad_sum + g * D);
    T* cross = args.cross + g * D * D;
    if (plan.chunks > 1) add_up(plan.chunks, D * D, products + g * plan.chunks * D * D, cross);
    if (!flipped) return;
    Buffer<T> as_summed(D * D);
    std::copy_n(cross, D * D, as_summed.get());
    transpose(D, as_summed.get(), cross);
  };
  for_chunks(args.s, plan, unit, finish);
}

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_backward_reduce(const Device&, const BackwardReduce<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
