// What the ops check. The friendly errors are raised in Python before an op is reached:
// what fails here is a caller of the raw ops, or a bug.
#pragma once

#include "../common/layout.h"
#include "../common/stable.h"

namespace fastwhiten {

inline void check_floating(const char* op, const char* name, ScalarType t) {
  STD_TORCH_CHECK(t == ScalarType::Half || t == ScalarType::BFloat16 || t == ScalarType::Float ||
                      t == ScalarType::Double,
                  op, ": expected ", name, " of a floating dtype, got ",
                  torch::headeronly::toString(t));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), op, ": expected ", name,
                  " contiguous; call .contiguous() first");
}

inline Layout check_layout(const char* op, const Tensor& x, int64_t groups) {
  check_floating(op, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, op,
                  ": expected x of shape [M, C] or [N, C, L], got ", x.dim(), " dimensions");
  check_contiguous(op, "x", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, op, ": expected groups that divide the ",
                  channels, " channels, got ", groups);
  const int64_t length = x.dim() == 3 ? x.size(2) : 1;
  const int64_t kMax = 2147483647;  // BLAS and LAPACK take 32-bit leading dimensions
  STD_TORCH_CHECK(channels <= kMax && length <= kMax, op, ": expected C and L below 2^31");
  return {x.size(0), channels, length, groups, channels / groups};
}

// [M, C] only.
inline Layout check_rows(const char* op, const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 2, op, ": expected rows [M, C], got ", x.dim(), " dimensions");
  return check_layout(op, x, groups);
}

inline void check_sizes(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": expected ", name, " of dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
  bool same = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == sizes.begin()[d];
  STD_TORCH_CHECK(same, op, ": unexpected shape of ", name);
  check_contiguous(op, name, t);
}

inline void check_sizes(const char* op, const char* name, const OptionalTensor& t, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  if (t.has_value()) check_sizes(op, name, *t, dtype, sizes);
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  if (x.dim() == 3) {
    check_sizes(op, name, t, x.scalar_type(), {x.size(0), x.size(1), x.size(2)});
  } else {
    check_sizes(op, name, t, x.scalar_type(), {x.size(0), x.size(1)});
  }
}

// The dtype T of the statistics, given by the tensor that carries it.
inline ScalarType check_accumulation(const char* op, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": expected statistics in float32 or float64");
  return dtype;
}

// The same beside an input x: of float64, statistics have no fewer digits.
inline ScalarType check_accumulation(const char* op, const Tensor& t, const Tensor& x) {
  const ScalarType dtype = check_accumulation(op, t);
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double || dtype == ScalarType::Double, op,
                  ": expected statistics in float64 for a float64 input");
  return dtype;
}

inline void check_kind(const char* op, int64_t kind) {
  STD_TORCH_CHECK(kind == kZca || kind == kPca || kind == kCholesky, op,
                  ": expected kind 0 (zca), 1 (pca) or 2 (cholesky), got ", kind);
}

// least: kNoShrinkage or kFixed.
inline void check_method(const char* op, int64_t method, int64_t least) {
  STD_TORCH_CHECK(method >= least && method <= kLedoitWolf, op, ": expected a method from ", least,
                  " to 3 (1 fixed, 2 oas, 3 ledoit-wolf), got ", method);
}

// What factor returns; eigenvalues and basis count for the kinds that have them.
inline void check_factors(const char* op, ScalarType dtype, int64_t G, int64_t D, int64_t kind,
                          const Tensor& eigenvalues, const Tensor& basis, const Tensor& matrix) {
  check_sizes(op, "matrix", matrix, dtype, {G, D, D});
  if (kind == kCholesky) return;
  check_sizes(op, "eigenvalues", eigenvalues, dtype, {G, D});
  check_sizes(op, "basis", basis, dtype, {G, D, D});
}

// The eigensystem of Gram matrices, and what goes with it.
inline void check_gram(const char* op, const Layout& s, ScalarType dtype, const Tensor& eigenvalues,
                       const Tensor& eigenvectors, const OptionalTensor& row_weight,
                       const OptionalTensor& rho) {
  check_sizes(op, "eigenvalues", eigenvalues, dtype, {s.groups, s.samples});
  check_sizes(op, "eigenvectors", eigenvectors, dtype, {s.groups, s.samples, s.samples});
  check_sizes(op, "row_weight", row_weight, dtype, {s.samples});
  check_sizes(op, "rho", rho, dtype, {s.groups});
}

}  // namespace fastwhiten
