// The sample side, M <= D, rows only. Every element is one dot product, but for a channel's mean,
// which runs over the rows in order: so it is deterministic.
//
// statistics: mean [C] = sum_n p_n x_n ; scaled_n = sqrt(p_n) (x_n - mean) ; gram [G, M, M] =
// scaled_g scaled_g^T = V diag(d) V^T. Bytes: x twice (the second time from cache while M * 256
// channels fit), scaled once out and once in.
//
// apply: t = sqrt((1 - rho) d + e), e = eps + rho sum(d) / D ; P = diag(1/t) V^T scaled_g ; y_g =
// diag(1/sqrt p) V P. The diagonal matrices are folded into copies of V (a constant one into the
// product): two products of 2 M^2 D flops per group. Bytes: scaled and P in, P and y out.
//
// backward: Gt = diag(1/sqrt p) grad ; Gv = V^T Gt ; Fm = Gv P^T ; R = w Fm^T + (1 - w) Fm, w_ij =
// t_i / (t_i + t_j) ; H = diag(1/t) (Gv - (1 - rho) R P) - (rho/D) sum_i(Fm_ii / t_i^2) diag(t) P ;
// dx_n = sqrt(p_n) (V H)_n - p_n sum_m sqrt(p_m) (V H)_m. Diagonals and the centring are folded
// into M x M matrices: H = B^T grad + K P, dx = E H, with B = diag(1/sqrt p) V diag(1/t), E =
// diag(sqrt p) V - p u^T, u = V^T sqrt p. Four products of 2 M^2 D flops per group; no pass over
// rows but the products.
#include <cmath>
#include <type_traits>

#include "heaviest.h"
#include "parallel.h"
#include "stages.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

// t [M] = sqrt((1 - rho) d + e), d clamped at 0.
template <class T>
void spectrum(int64_t M, int64_t D, const T* eigenvalues, T rho, T eps, T* t) {
  T sum = 0;
  for (int64_t i = 0; i < M; ++i) {
    t[i] = eigenvalues[i] < 0 ? T(0) : eigenvalues[i];  // a Gram matrix has none; NaN stays NaN
    sum += t[i];
  }
  const T e = eps + rho * sum / static_cast<T>(D);
  for (int64_t i = 0; i < M; ++i) t[i] = std::sqrt((1 - rho) * t[i] + e);
}

// root [M] = sqrt(p_n).
template <class T>
void root_weights(int64_t M, const T* p, T* root) {
  const T uniform = 1 / std::sqrt(static_cast<T>(M));
  for (int64_t n = 0; n < M; ++n) root[n] = p == nullptr ? uniform : std::sqrt(p[n]);
}

// Flops of a product [M, M] [M, D], or [M, D] [D, M].
double product_flops(int64_t M, int64_t D) {
  return 2.0 * static_cast<double>(M) * static_cast<double>(M) * static_cast<double>(D);
}

// Channels [c0, c0 + count): their mean, then their scaled columns. The sums are of differences
// from the row of largest weight, so that they are as accurate as the spread of the data allows.
template <class In, class T>
void scale_channels(int64_t M, int64_t C, const In* x, const T* p, const T* root, int64_t origin,
                    int64_t c0, int64_t count, T* mean, T* scaled) {
  Buffer<T> first(count), sums(count);
  for (int64_t c = 0; c < count; ++c) {
    first[c] = static_cast<T>(x[origin * C + c0 + c]);
    sums[c] = 0;
  }
  const T uniform = T(1) / static_cast<T>(M);
  for (int64_t n = 0; n < M; ++n) {
    const In* from = x + n * C + c0;  // [count]
    const T q = p == nullptr ? uniform : p[n];
    for (int64_t c = 0; c < count; ++c) sums[c] += q * (static_cast<T>(from[c]) - first[c]);
  }
  for (int64_t c = 0; c < count; ++c) mean[c0 + c] = first[c] + sums[c];
  for (int64_t n = 0; n < M; ++n) {
    const In* from = x + n * C + c0;  // [count]
    T* to = scaled + n * C + c0;      // [count]
    for (int64_t c = 0; c < count; ++c) to[c] = root[n] * (static_cast<T>(from[c]) - mean[c0 + c]);
  }
}

// B [M, M] and E [M, M]: backward's.
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
void backward_of_group(const Layout& s, int64_t g, const In* grad, const T* P, const T* t,
                       const T* V, const T* root, T rho, In* dx) {
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

}  // namespace

template <class In, class T>
void run_sample_statistics(const Device&, const SampleStatistics<In, T>& args) {
  const int64_t M = args.s.samples, C = args.s.channels, D = args.s.width;
  Buffer<T> root(M);
  root_weights(M, args.p, root.get());
  const int64_t origin = heaviest_row(args.p, 0, M);
  constexpr int64_t kChannels =
      256;  // 1 KiB of every row: whole pages stay mapped, M = 1024 fits the L2
  const double touched = 8.0 * static_cast<double>(args.s.numel());
  parallel((C + kChannels - 1) / kChannels, touched, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t c0 = b * kChannels;
      scale_channels(M, C, args.x, args.p, root.get(), origin, c0, std::min(kChannels, C - c0),
                     args.mean, args.scaled);
    }
  });
  for_groups(args.s.groups, product_flops(M, D), [&](int64_t g) {
    gemm_symmetric(false, M, D, T(1), args.scaled + g * D, C, T(0), args.gram + g * M * M, M);
    mirror(M, args.gram + g * M * M);
  });
}

template <class Out, class T>
void run_sample_apply(const Device&, const SampleApply<Out, T>& args) {
  const int64_t M = args.s.samples, C = args.s.channels, D = args.s.width;
  Buffer<T> root(M);
  root_weights(M, args.p, root.get());
  for_groups(args.s.groups, product_flops(M, D), [&](int64_t g) {
    // Equal weights leave V as it is: their root is a factor of the whole product.
    Buffer<T> t(M), whiten(M * M), rotated(args.p == nullptr ? 0 : M * M);
    spectrum(M, D, args.eigenvalues + g * M, args.rho == nullptr ? T(0) : args.rho[g],
             static_cast<T>(args.eps), t.get());
    const T* V = args.eigenvectors + g * M * M;  // [M, M]
    for_rows(M, M, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t i = 0; i < M; ++i) whiten[n * M + i] = V[n * M + i] / t[i];
        if (args.p == nullptr) continue;
        for (int64_t i = 0; i < M; ++i) rotated[n * M + i] = V[n * M + i] / root[n];
      }
    });
    const T* rotate = args.p == nullptr ? V : rotated.get();
    const T scale = args.p == nullptr ? 1 / root[0] : T(1);
    T* P = args.projected + g * M * D;  // [M, D]
    gemm(true, false, M, D, M, T(1), whiten.get(), M, args.scaled + g * D, C, T(0), P, D);
    if constexpr (std::is_same_v<Out, T>) {
      gemm(false, false, M, D, M, scale, rotate, M, P, D, T(0), args.y + g * D, C);
    } else {
      Buffer<T> result(M * D);
      gemm(false, false, M, D, M, scale, rotate, M, P, D, T(0), result.get(), D);
      for (int64_t n = 0; n < M; ++n) {
        for (int64_t c = 0; c < D; ++c)
          args.y[n * C + g * D + c] = static_cast<Out>(result[n * D + c]);
      }
    }
  });
}

template <class In, class T>
void run_sample_backward(const Device&, const SampleBackward<In, T>& args) {
  const int64_t M = args.s.samples, D = args.s.width;
  Buffer<T> root(M);
  root_weights(M, args.p, root.get());
  for_groups(args.s.groups, product_flops(M, D), [&](int64_t g) {
    const T r = args.rho == nullptr ? T(0) : args.rho[g];
    Buffer<T> t(M);
    spectrum(M, D, args.eigenvalues + g * M, r, static_cast<T>(args.eps), t.get());
    backward_of_group(args.s, g, args.grad, args.projected + g * M * D, t.get(),
                      args.eigenvectors + g * M * M, root.get(), r, args.dx);
  });
}

#define FASTWHITEN_INSTANTIATE(In, T)                                                 \
  template void run_sample_statistics(const Device&, const SampleStatistics<In, T>&); \
  template void run_sample_apply(const Device&, const SampleApply<In, T>&);           \
  template void run_sample_backward(const Device&, const SampleBackward<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
