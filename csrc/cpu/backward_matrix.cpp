// A = cross diag(gamma), F = V^T A Q, R_ij = w_ij F_ij + (1 - w_ij) F_ji, core = V R V^T,
// inner = beta (1 - rho) core + beta rho trace(core) / D I ; grad_gamma_j = sum_i W_ij cross_ij.
//
// zca: V = U diag(1/s), Q = U, w_ij = s_i / (s_i + s_j) in (0, 1): no gap between eigenvalues is
// divided by. pca: V = W, Q = I, w_ij = l_i / (l_i - l_j), a tied pair takes the symmetric part.
// cholesky: V = W, Q = I, w = 1 above the diagonal, 0 below, 1/2 on it. Four products of 2 D^3
// flops, two of them symmetric (pca: three, one). cholesky: V is upper triangular, and so is P, R =
// P + P^T, of which core = V P V^T + (V P V^T)^T is made: 5/3 D^3 flops, in blocks.
#include <cmath>

#include "parallel.h"
#include "stages.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

// The lower triangle of F [D, D] = U^T (A + A^T) U -> diag(1/s) R diag(1/s), whole, in place.
template <class T>
void weigh_zca(int64_t D, const T* eigenvalues, T* F) {
  Buffer<T> s(D), inverse(D);
  for (int64_t i = 0; i < D; ++i) {
    s[i] = std::sqrt(eigenvalues[i]);
    inverse[i] = 1 / s[i];
  }
  for (int64_t i = 0; i < D; ++i) {
    T* row = F + i * D;  // [D]
    // R is built from diag(1/s) U^T A U, and w_ij / s_i = 1 / (s_i + s_j) = (1 - w_ij) / s_j.
    for (int64_t j = 0; j <= i; ++j) row[j] = row[j] / (s[i] + s[j]) * (inverse[i] * inverse[j]);
  }
  mirror(D, F);
}

// F [D, D] -> R, in place.
template <class T>
void weigh_pca(int64_t D, const T* l, T* F) {
  // An eigenvalue is known to about D eps times the largest; a closer pair than this has no
  // meaningful eigenvectors of its own, and the antisymmetric part of F in it no meaning.
  const T tie = tie_tolerance<T>(D);
  for (int64_t i = 0; i < D; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const T gap = l[i] - l[j], upper = F[j * D + i], lower = F[i * D + j];
      const bool tied = i == j || std::abs(gap) <= tie * std::max(l[i], l[j]);
      F[i * D + j] = tied ? (lower + upper) / 2 : (l[i] * lower - l[j] * upper) / gap;
    }
  }
  mirror(D, F);
}

template <class T>
struct Group {  // the matrices of one group, [D, D] each but eigenvalues and gamma [D]
  const T *cross, *eigenvalues, *basis, *matrix, *gamma;
};

// The lower triangle of inner [D, D] = beta core, of zca and pca. A and F are scratch on return.
template <class T>
void core_eigen(int64_t D, const Group<T>& in, bool zca, T beta, T* A, T* F, T* inner) {
  const T* V = zca ? in.basis : in.matrix;  // zca: diag(1/s) is applied by weigh_zca
  if (zca) {
    transpose(D, A, F);
    for (int64_t i = 0; i < D * D; ++i) A[i] += F[i];  // all that counts of A: half a product less
    gemm(true, false, D, D, D, T(1), V, D, A, D, T(0), inner, D);
    gemm_lower(false, false, D, D, T(1), inner, D, V, D, T(0), F, D);
    weigh_zca(D, in.eigenvalues, F);
  } else {
    gemm(true, false, D, D, D, T(1), V, D, A, D, T(0), F, D);
    weigh_pca(D, in.eigenvalues, F);
  }
  gemm(false, false, D, D, D, T(1), V, D, F, D, T(0), A, D);
  gemm_lower(false, true, D, D, beta, A, D, V, D, T(0), inner, D);
}

// The same of cholesky, V [D, D] upper triangular.
template <class T>
void core_cholesky(int64_t D, const T* V, T beta, T* A, T* P, T* inner) {
  const int64_t block = std::max<int64_t>(32, (D / 8 + 15) / 16 * 16);
  const auto for_blocks = [&](const auto& f) {
    for (int64_t i = 0; i < D; i += block) f(i, std::min(block, D - i));
  };
  for_blocks([&](int64_t i, int64_t rows) {  // the upper triangle of F
    gemm(true, false, rows, D - i, i + rows, T(1), V + i, D, A + i, D, T(0), P + i * D + i, D);
  });
  for (int64_t i = 0; i < D; ++i) {
    std::fill_n(P + i * D, i, T(0));
    P[i * D + i] /= 2;
  }
  T* Q = A;  // V P, upper triangular; A has served
  for_blocks([&](int64_t i, int64_t rows) {
    gemm(false, false, rows, D - i, D - i, T(1), V + i * D + i, D, P + i * D + i, D, T(0),
         Q + i * D + i, D);
  });
  for_blocks([&](int64_t i, int64_t rows) {
    const int64_t at = i * D + i, end = i + rows;
    gemm(false, true, rows, end, D - i, beta, Q + at, D, V + i, D, T(0), inner + i * D, D);
    gemm(false, true, rows, end, D - i, beta, V + at, D, Q + i, D, T(1), inner + i * D, D);
  });
}

template <class T>
void inner_of_group(int64_t D, const Group<T>& in, T rho, T beta, int64_t kind, T* inner) {
  Buffer<T> first(D * D), second(D * D);
  T *A = first.get(), *F = second.get();
  for (int64_t i = 0; i < D; ++i) {
    for (int64_t j = 0; j < D; ++j) {
      A[i * D + j] = in.gamma == nullptr ? in.cross[i * D + j] : in.cross[i * D + j] * in.gamma[j];
    }
  }
  if (kind == kCholesky) {
    core_cholesky(D, in.matrix, beta, A, F, inner);
  } else {
    core_eigen(D, in, kind == kZca, beta, A, F, inner);
  }
  mirror(D, inner);
  if (rho == T(0)) return;
  T trace = 0;
  for (int64_t i = 0; i < D; ++i) trace += inner[i * D + i];
  for (int64_t i = 0; i < D * D; ++i) inner[i] *= 1 - rho;
  for (int64_t i = 0; i < D; ++i) inner[i * D + i] += rho * trace / static_cast<T>(D);
}

template <class T>
void gamma_of_group(int64_t D, const T* matrix, const T* cross, T* grad_gamma) {
  std::fill_n(grad_gamma, D, T(0));
  for (int64_t i = 0; i < D; ++i) {
    for (int64_t j = 0; j < D; ++j) grad_gamma[j] += matrix[i * D + j] * cross[i * D + j];
  }
}

}  // namespace

template <class T>
void run_backward_matrix(const Device&, const BackwardMatrix<T>& args) {
  const double d = static_cast<double>(args.D);
  for_groups(args.G, 8.0 * d * d * d, [&](int64_t g) {
    const int64_t at = g * args.D * args.D;
    Group<T> in = {args.cross + at, nullptr, nullptr, args.matrix + at, nullptr};
    if (args.kind != kCholesky) {
      in.eigenvalues = args.eigenvalues + g * args.D;
      in.basis = args.basis + at;
    }
    if (args.gamma != nullptr) in.gamma = args.gamma + g * args.D;
    inner_of_group(args.D, in, args.rho == nullptr ? T(0) : args.rho[g],
                   static_cast<T>(args.batch_weight), args.kind, args.inner + at);
    gamma_of_group(args.D, in.matrix, in.cross, args.grad_gamma + g * args.D);
  });
}

#define FASTWHITEN_INSTANTIATE(T) \
  template void run_backward_matrix(const Device&, const BackwardMatrix<T>&);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
