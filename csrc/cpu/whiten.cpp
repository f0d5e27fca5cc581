// The stages of a forward, or of a backward, one after another in one call.
//
// Several groups that each fit the L2 cache are taken whole, one thread a group from the first
// stage to the last: what the next stage reads is still in cache, and threads meet once instead of
// once a stage. Otherwise every stage covers all groups before the next one starts. Bytes and
// determinism: those of the stages; which of the two ways is taken depends on the shape alone.
#include "../ops/whiten.h"

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "parallel.h"
#include "stages.h"
#include "tiles.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kCachedBytes = 1 << 20;  // half of an L2 cache, for x and grad or y of a group

// Calls f(layout of the groups [g, g + its groups), g): for single groups side by side, or for all.
template <class T, class F>
void for_each_part(const Layout& s, const F& f) {
  const int64_t bytes = 2 * s.rows() * s.width * static_cast<int64_t>(sizeof(T));
  if (s.groups == 1 || s.width >= kWideFrom || bytes > kCachedBytes) return f(s, int64_t{0});
  Layout part = s;  // one group; s.channels stays: it is the row stride
  part.groups = 1;
  const double flops = 4.0 * static_cast<double>(s.numel()) * static_cast<double>(s.width);
  parallel(s.groups, flops + kSerialFlops, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) f(part, g);
  });
}

template <class T>
const T* at(const T* p, int64_t offset) {
  return p == nullptr ? nullptr : p + offset;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> whiten_forward(
    const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& row_weight, const OptionalTensor& running_covariance, int64_t groups,
    double batch_weight, double eps, int64_t kind, bool double_precision, int64_t method,
    double value, const OptionalTensor& start) {
  const Layout s = check_whiten_forward(x, gamma, beta, row_weight, running_covariance, groups,
                                        kind, double_precision, method, start);
  STD_TORCH_CHECK(s.numel() > 0, "whiten_forward: expected at least one row");
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  const int64_t G = s.groups, D = s.width;
  const bool spectral = kind != kCholesky;
  Tensor y = uninitialized_like(x), mean = empty({s.channels}, dtype);
  Tensor covariance = empty({G, D, D}, dtype), matrix = empty({G, D, D}, dtype);
  Tensor values = spectral ? empty({G, D}, dtype) : empty({0}, dtype);
  Tensor basis = spectral ? empty({G, D, D}, dtype) : empty({0}, dtype);
  Tensor rho = empty({method == kNoShrinkage ? 0 : G}, dtype);
  dispatch(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    T* const m = mutable_data<T>(mean);
    T* const c = mutable_data<T>(covariance);
    T* const w = mutable_data<T>(matrix);
    T* const l = mutable_data<T>(values);
    T* const u = mutable_data<T>(basis);
    T* const shares = method == kNoShrinkage ? nullptr : mutable_data<T>(rho);
    const In* const from = data<In>(x);
    In* const to = mutable_data<In>(y);
    for_each_part<T>(s, [&](const Layout& part, int64_t g) {
      const int64_t first = offset(s, 0, g * D), square = g * D * D;
      run_statistics(part, from + first, data<T>(row_weight), m + g * D, c + square);
      const T* const old = at(data<T>(running_covariance), square);
      if (shares != nullptr) {
        run_intensity(part, from + first, m + g * D, c + square, old, data<T>(row_weight),
                      batch_weight, method, value, shares + g);
      }
      run_factor<T>(part.groups, D, c + square, old, at<T>(shares, g), batch_weight, eps, kind,
                    spectral ? l + g * D : l, spectral ? u + square : u, w + square);
      run_apply(part, from + first, m + g * D, w + square, at(data<T>(gamma), g * D),
                at(data<T>(beta), g * D), to + first);
    });
  });
  return {y, mean, covariance, values, basis, matrix, rho};
}

std::tuple<Tensor, Tensor, Tensor> whiten_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& mean, const Tensor& eigenvalues,
                                                   const Tensor& basis, const Tensor& matrix,
                                                   const OptionalTensor& gamma,
                                                   const OptionalTensor& rho,
                                                   const OptionalTensor& row_weight,
                                                   double batch_weight, int64_t kind) {
  const Layout s = check_whiten_backward(grad, x, mean, eigenvalues, basis, matrix, gamma, rho,
                                         row_weight, kind);
  STD_TORCH_CHECK(s.numel() > 0, "whiten_backward: expected at least one row");
  const ScalarType dtype = mean.scalar_type();
  const int64_t D = s.width;
  const bool spectral = kind != kCholesky;
  Tensor dx = uninitialized_like(x);
  Tensor grad_gamma = empty({s.channels}, dtype), grad_sum = empty({s.channels}, dtype);
  dispatch(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    const In *from = data<In>(x), *of = data<In>(grad);
    const T *m = data<T>(mean), *w = data<T>(matrix), *scale = data<T>(gamma);
    T* const sums = mutable_data<T>(grad_sum);
    T* const of_gamma = mutable_data<T>(grad_gamma);
    In* const to = mutable_data<In>(dx);
    for_each_part<T>(s, [&](const Layout& part, int64_t g) {
      const int64_t first = offset(s, 0, g * D), square = g * D * D;
      Buffer<T> cross(part.groups * D * D), inner(part.groups * D * D);
      run_backward_reduce(part, from + first, of + first, m + g * D, sums + g * D, cross.get());
      run_backward_matrix<T>(
          part.groups, D, cross.get(), spectral ? data<T>(eigenvalues) + g * D : nullptr,
          spectral ? data<T>(basis) + square : nullptr, w + square, at(scale, g * D),
          at(data<T>(rho), g), batch_weight, kind, inner.get(), of_gamma + g * D);
      run_backward_apply(part, from + first, of + first, m + g * D, sums + g * D, w + square,
                         inner.get(), at(scale, g * D), data<T>(row_weight), to + first);
    });
  });
  return {dx, grad_gamma, grad_sum};
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("whiten_forward", TORCH_BOX(&fastwhiten::cpu::whiten_forward));
  m.impl("whiten_backward", TORCH_BOX(&fastwhiten::cpu::whiten_backward));
}
