// Gt = diag(1/sqrt p) grad ; Gv = V^T Gt ; Fm = Gv P^T ; R = w Fm^T + (1 - w) Fm, w_ij = t_i / (t_i
// + t_j) ; H = diag(1/t) (Gv - (1 - rho) R P) - (rho/D) sum_i(Fm_ii / t_i^2) diag(t) P ; dx_n =
// sqrt(p_n) (V H)_n - p_n sum_m sqrt(p_m) (V H)_m.
//
// Diagonals and the centring are folded into M x M matrices: H = B^T grad + K P, dx = E H, with
// B = diag(1/sqrt p) V diag(1/t), E = diag(sqrt p) V - p u^T, u = V^T sqrt p. Four products of 2
// M^2 D flops per group; no pass over rows but the products. Determinism: every element is one dot
// product.
#include <type_traits>

#include "../ops/sample.h"
#include "parallel.h"
#include "sample_spectrum.h"
#include "symmetric.h"

namespace fastwhiten::cpu {
namespace {

// B [M, M] and E [M, M] of the header.
template <class T>
void fold_weights(int64_t M, const T* V, const T* root, const T* t, T* B, T* E) {
  Buffer<T> u(M), inverse(M);
  for (int64_t i = 0; i < M; ++i) {
    u[i] = 0;
    inverse[i] = 1 / t[i];
  }
  for (int64_t n = 0; n < M; ++n) {
    for (int64_t i = 0; i < M; ++i) u[i] += root[n] * V[n * M + i];
  }
  for_rows(M, M, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T q = 1 / root[n];
      for (int64_t i = 0; i < M; ++i) {
        B[n * M + i] = V[n * M + i] * q * inverse[i];
        E[n * M + i] = root[n] * (V[n * M + i] - root[n] * u[i]);
      }
    }
  });
}

// F [M, M] = diag(1/t) Fm -> K [M, M] = -(1 - rho) diag(1/t) R - (rho/D) sum_i(Fm_ii / t_i^2)
// diag(t).
template <class T>
void weigh(int64_t M, int64_t D, const T* t, T rho, const T* F, T* K) {
  constexpr int64_t kStrip = 16;
  for_rows(M, M, [&](int64_t begin, int64_t end) {
    Buffer<T> strip(kStrip * M);  // the columns of F that lie across these rows, as rows
    for (int64_t i0 = begin; i0 < end; i0 += kStrip) {
      const int64_t rows = std::min(kStrip, end - i0);
      product_kernels<T>().transpose(M, rows, F + i0, M, strip.get(), M);
      for (int64_t i = i0; i < i0 + rows; ++i) {
        const T* column = strip.get() + (i - i0) * M;  // [M]
        for (int64_t j = 0; j < M; ++j) {
          // R_ij = (t_i Fm_ji + t_j Fm_ij) / (t_i + t_j) = t_i t_j (F_ji + F_ij) / (t_i + t_j)
          K[i * M + j] = -(1 - rho) * t[j] * (column[j] + F[i * M + j]) / (t[i] + t[j]);
        }
      }
    }
  });
  T trace = 0;
  for (int64_t i = 0; i < M; ++i) trace += F[i * M + i] / t[i];
  const T coefficient = rho * trace / static_cast<T>(D);
  for (int64_t i = 0; i < M; ++i) K[i * M + i] -= coefficient * t[i];
}

template <class In, class T>
void of_group(const Layout& s, int64_t g, const In* grad, const T* P, const T* t, const T* V,
              const T* root, T rho, In* dx) {
  const int64_t M = s.samples, C = s.channels, D = s.width;
  Buffer<T> B(M * M), E(M * M), F(M * M), H(M * D);
  fold_weights(M, V, root, t, B.get(), E.get());
  if constexpr (std::is_same_v<In, T>) {
    gemm(true, false, M, D, M, T(1), B.get(), M, grad + g * D, C, T(0), H.get(), D);
  } else {
    Buffer<T> converted(M * D);
    for (int64_t n = 0; n < M; ++n) {
      const In* from = grad + n * C + g * D;  // [D]
      for (int64_t c = 0; c < D; ++c) converted[n * D + c] = static_cast<T>(from[c]);
    }
    gemm(true, false, M, D, M, T(1), B.get(), M, converted.get(), D, T(0), H.get(), D);
  }
  gemm(false, true, M, M, D, T(1), H.get(), D, P, D, T(0), F.get(), M);
  T* K = B.get();  // B has served
  weigh(M, D, t, rho, F.get(), K);
  gemm(false, false, M, D, M, T(1), K, M, P, D, T(1), H.get(), D);
  if constexpr (std::is_same_v<In, T>) {
    gemm(false, false, M, D, M, T(1), E.get(), M, H.get(), D, T(0), dx + g * D, C);
  } else {
    Buffer<T> result(M * D);
    gemm(false, false, M, D, M, T(1), E.get(), M, H.get(), D, T(0), result.get(), D);
    for (int64_t n = 0; n < M; ++n) {
      for (int64_t c = 0; c < D; ++c) dx[n * C + g * D + c] = static_cast<In>(result[n * D + c]);
    }
  }
}

Tensor sample_backward(const Tensor& grad, const Tensor& projected, const Tensor& eigenvalues,
                       const Tensor& eigenvectors, const OptionalTensor& row_weight,
                       const OptionalTensor& rho, double eps) {
  const Layout s =
      check_sample_backward(grad, projected, eigenvalues, eigenvectors, row_weight, rho);
  Tensor dx = empty({s.samples, s.channels}, grad.scalar_type());
  if (s.numel() == 0) return dx;
  dispatch(grad.scalar_type(), projected.scalar_type(), [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    const int64_t M = s.samples, D = s.width;
    Buffer<T> root(M);
    root_weights(M, data<T>(row_weight), root.get());
    const T* shrinkage = data<T>(rho);
    In* const out = mutable_data<In>(dx);
    for_groups(s.groups, sample_flops(M, D), [&](int64_t g) {
      const T r = shrinkage == nullptr ? T(0) : shrinkage[g];
      Buffer<T> t(M);
      sample_spectrum(M, D, data<T>(eigenvalues) + g * M, r, static_cast<T>(eps), t.get());
      of_group(s, g, data<In>(grad), data<T>(projected) + g * M * D, t.get(),
               data<T>(eigenvectors) + g * M * M, root.get(), r, out);
    });
  });
  return dx;
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("sample_backward", TORCH_BOX(&fastwhiten::cpu::sample_backward));
}
