// P = diag(1/t) V^T scaled_g ; y_g = diag(1/sqrt p) V P, with gram_g = V diag(d) V^T and
// t = sqrt((1 - rho) d + e).
//
// The diagonal matrices are folded into copies of V (a constant one into the product): two products
// of 2 M^2 D flops per group. Bytes: scaled and P in, P and y out. Determinism: every element is
// one dot product.
#include <type_traits>

#include "../ops/sample.h"
#include "parallel.h"
#include "sample_spectrum.h"
#include "symmetric.h"

namespace fastwhiten::cpu {
namespace {

template <class Out, class T>
void run(const Layout& s, const T* scaled, const T* eigenvalues, const T* eigenvectors, const T* p,
         const T* rho, T eps, Out* y, T* projected) {
  const int64_t M = s.samples, C = s.channels, D = s.width;
  Buffer<T> root(M);
  root_weights(M, p, root.get());
  for_groups(s.groups, sample_flops(M, D), [&](int64_t g) {
    // Equal weights leave V as it is: their root is a factor of the whole product.
    Buffer<T> t(M), whiten(M * M), rotated(p == nullptr ? 0 : M * M);
    sample_spectrum(M, D, eigenvalues + g * M, rho == nullptr ? T(0) : rho[g], eps, t.get());
    const T* V = eigenvectors + g * M * M;  // [M, M]
    for_rows(M, M, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t i = 0; i < M; ++i) whiten[n * M + i] = V[n * M + i] / t[i];
        if (p == nullptr) continue;
        for (int64_t i = 0; i < M; ++i) rotated[n * M + i] = V[n * M + i] / root[n];
      }
    });
    const T* rotate = p == nullptr ? V : rotated.get();
    const T scale = p == nullptr ? 1 / root[0] : T(1);
    T* P = projected + g * M * D;  // [M, D]
    gemm(true, false, M, D, M, T(1), whiten.get(), M, scaled + g * D, C, T(0), P, D);
    if constexpr (std::is_same_v<Out, T>) {
      gemm(false, false, M, D, M, scale, rotate, M, P, D, T(0), y + g * D, C);
    } else {
      Buffer<T> result(M * D);
      gemm(false, false, M, D, M, scale, rotate, M, P, D, T(0), result.get(), D);
      for (int64_t n = 0; n < M; ++n) {
        for (int64_t c = 0; c < D; ++c) y[n * C + g * D + c] = static_cast<Out>(result[n * D + c]);
      }
    }
  });
}

std::tuple<Tensor, Tensor> sample_apply(const Tensor& scaled, const Tensor& eigenvalues,
                                        const Tensor& eigenvectors,
                                        const OptionalTensor& row_weight, const OptionalTensor& rho,
                                        double eps, ScalarType out_dtype) {
  const Layout s =
      check_sample_apply(scaled, eigenvalues, eigenvectors, row_weight, rho, out_dtype);
  Tensor y = empty({s.samples, s.channels}, out_dtype);
  Tensor projected = empty({s.groups, s.samples, s.width}, scaled.scalar_type());
  if (s.numel() == 0) return {y, projected};
  dispatch(out_dtype, scaled.scalar_type(), [&](auto out, auto accumulation) {
    using Out = typename decltype(out)::type;
    using T = typename decltype(accumulation)::type;
    run(s, data<T>(scaled), data<T>(eigenvalues), data<T>(eigenvectors), data<T>(row_weight),
        data<T>(rho), static_cast<T>(eps), mutable_data<Out>(y), mutable_data<T>(projected));
  });
  return {y, projected};
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("sample_apply", TORCH_BOX(&fastwhiten::cpu::sample_apply));
}
