// grad_sum [C] = sum_n g_n ; cross [G, D, D] = sum_n (x_n - mean) g_n^T (row: x's channel).
//
// One product per tile; grad is read in place where it has the accumulation dtype.
// Bytes: x and grad once from memory, grad a second time from cache (its sum).
// Determinism: tiles are added in order within a chunk, chunks in order at the end; no atomics.
#include "../ops/backward_reduce.h"

#include <type_traits>

#include "product.h"

namespace fastwhiten::cpu {
namespace {

// cross [D, D] += (or =) the product of the centred tile with grad's rows [r0, r0 + m).
template <class In, class T>
void add_cross(const Layout& s, const Plan& plan, const T* tile, int64_t ld, const In* grad,
               const T* zeros, T* grad_tile, int64_t g, int64_t r0, int64_t m, bool first,
               T* cross) {
  const int64_t D = s.width;
  constexpr int64_t kShortestProduct = 32;  // images shorter than this are gathered first
  const T keep = first ? T(0) : T(1);
  if constexpr (std::is_same_v<In, T>) {
    if (!s.planes()) {
      gemm(true, false, D, D, m, T(1), tile, ld, grad + offset(s, r0, g * D), s.channels, keep,
           cross, D);
      return;
    }
    if (s.length >= kShortestProduct) {
      for_segments(s, r0, m, [&](int64_t r, int64_t length) {
        gemm(false, true, D, D, length, T(1), tile + (r - r0), ld, grad + offset(s, r, g * D),
             s.length, first && r == r0 ? T(0) : T(1), cross, D);
      });
      return;
    }
  }
  load_tile<In, T>(s, plan, Scale::kNone, grad, g, r0, m, zeros, nullptr, grad_tile, ld);
  gemm(!s.planes(), s.planes(), D, D, m, T(1), tile, ld, grad_tile, ld, keep, cross, D);
}

template <class In, class T>
void run(const Layout& s, const In* x, const In* grad, const T* mean, T* grad_sum, T* cross) {
  const Plan plan = make_plan(s);
  const int64_t D = s.width, M = s.rows(), G = s.groups, units = G * plan.chunks;
  Buffer<T> sums(units * D), zeros(D);
  Buffer<T> partial(plan.chunks == 1 ? 0 : units * D * D);
  T* products = plan.chunks == 1 ? cross : partial.get();  // [G, chunks, D, D]
  std::fill_n(sums.get(), units * D, T(0));
  std::fill_n(zeros.get(), D, T(0));
  const auto unit = [&](int64_t begin, int64_t end) {
    Buffer<T> tile(D * plan.tile_rows), grad_tile(D * plan.tile_rows);
    const int64_t ld = s.planes() ? plan.tile_rows : D;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u / plan.chunks, k = u % plan.chunks;
      const int64_t first = k * plan.tiles / plan.chunks, last = (k + 1) * plan.tiles / plan.chunks;
      for (int64_t t = first; t < last; ++t) {
        const int64_t r0 = t * plan.tile_rows, m = std::min(plan.tile_rows, M - r0);
        load_tile<In, T>(s, plan, Scale::kNone, x, g, r0, m, mean + g * D, nullptr, tile.get(), ld);
        add_cross(s, plan, tile.get(), ld, grad, zeros.get(), grad_tile.get(), g, r0, m, t == first,
                  products + u * D * D);
        add_tile_sums<In, T>(s, grad, g, r0, m, zeros.get(), nullptr, sums.get() + u * D);
      }
    }
  };
  const double flops = 2.0 * static_cast<double>(s.numel()) * static_cast<double>(D);
  if (plan.wide) {
    unit(0, units);
  } else {
    parallel(units, flops, unit);
  }
  const double finish = static_cast<double>(units * D * D);
  parallel(G, finish, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const T* from = sums.get() + g * plan.chunks * D;  // [chunks, D]
      for (int64_t c = 0; c < D; ++c) {
        T sum = from[c];
        for (int64_t k = 1; k < plan.chunks; ++k) sum += from[k * D + c];
        grad_sum[g * D + c] = sum;
      }
      const T* product = products + g * plan.chunks * D * D;  // [chunks, D, D]
      for (int64_t i = 0; plan.chunks > 1 && i < D * D; ++i) {
        T sum = product[i];
        for (int64_t k = 1; k < plan.chunks; ++k) sum += product[k * D * D + i];
        cross[g * D * D + i] = sum;
      }
    }
  });
}

std::tuple<Tensor, Tensor> backward_reduce(const Tensor& x, const Tensor& grad, const Tensor& mean,
                                           int64_t groups) {
  const Layout s = check_backward_reduce(x, grad, mean, groups);
  Tensor grad_sum = empty({s.channels}, mean.scalar_type());
  Tensor cross = empty({s.groups, s.width, s.width}, mean.scalar_type());
  dispatch(x.scalar_type(), mean.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    if (s.numel() == 0) {
      std::fill_n(mutable_data<T>(grad_sum), grad_sum.numel(), T(0));
      std::fill_n(mutable_data<T>(cross), cross.numel(), T(0));
      return;
    }
    run(s, data<In>(x), data<In>(grad), data<T>(mean), mutable_data<T>(grad_sum),
        mutable_data<T>(cross));
  });
  return {grad_sum, cross};
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("backward_reduce", TORCH_BOX(&fastwhiten::cpu::backward_reduce));
}
