// The ops, written once for every device: what an op checks, what it returns, which stage it calls.
//
// A Device (cpu/device.h, cuda/device.h) is made of an op's name and its tensors, which have to lie
// on it. It has empty(sizes, dtype), eigh(...), Element<In> (what its kernels call an element of an
// input) and kIterates (its eigensolver makes sweeps); its namespace has fill(...) and the stages,
// run_<op>(device, ...). Comments say what a tensor's shape and dtype have to be; T is the dtype of
// the statistics.
#pragma once

#include <limits>
#include <tuple>

#include "../common/passes.h"
#include "checks.h"

namespace fastwhiten {
namespace ops {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What a Type stands for.
template <class Type>
using TypeOf = typename Type::type;

template <class Device>
Tensor empty_like(const Device& device, const Tensor& x) {
  return x.dim() == 3 ? device.empty({x.size(0), x.size(1), x.size(2)}, x.scalar_type())
                      : device.empty({x.size(0), x.size(1)}, x.scalar_type());
}

// What an empty batch leaves behind: one value everywhere.
template <class Device, class T>
void fill(Device& device, const Tensor& tensor, Type<T> t, double value) {
  fill(device, mutable_data(tensor, t), tensor.numel(), static_cast<T>(value));
}

// As that of common/stable.h, with the device's types.
template <class Device, class F>
void dispatch(const Device&, ScalarType input, ScalarType accumulation, const F& f) {
  fastwhiten::dispatch(input, accumulation, [&](auto in, auto t) {
    f(Type<typename Device::template Element<typename decltype(in)::type>>{}, t);
  });
}

// x [M, C] or [N, C, L]; row_weight [M] T, non-negative with sum 1, or None for 1/M.
template <class Device>
std::tuple<Tensor, Tensor> statistics(const Tensor& x, const OptionalTensor& row_weight,
                                      int64_t groups, bool double_precision) {
  const char* op = "statistics";
  const Layout s = check_layout(op, x, groups);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  Device device(op, x, row_weight);
  Tensor mean = device.empty({s.channels}, dtype);
  Tensor covariance = device.empty({s.groups, s.width, s.width}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    if (s.numel() == 0) {  // no rows: the mean of nothing
      fill(device, mean, t, kNaN);
      fill(device, covariance, t, kNaN);
      return;
    }
    run_statistics(device, Statistics<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                               s, data(x, in), data(row_weight, t), mutable_data(mean, t),
                               mutable_data(covariance, t)});
  });
  return {mean, covariance};
}

// How much of a covariance is replaced by a multiple of the identity. x [M, C] or [N, C, L];
// mean [C], covariance and running_covariance [G, D, D], row_weight [M], T; method 1 (fixed: the
// value), 2 (oas) or 3 (ledoit-wolf).
template <class Device>
Tensor intensity(const Tensor& x, const Tensor& mean, const Tensor& covariance,
                 const OptionalTensor& running_covariance, const OptionalTensor& row_weight,
                 double batch_weight, int64_t method, double value) {
  const char* op = "intensity";
  STD_TORCH_CHECK(covariance.dim() == 3, op, ": expected covariance of shape [G, D, D]");
  const Layout s = check_layout(op, x, covariance.size(0));
  const ScalarType dtype = check_accumulation(op, mean, x);
  check_method(op, method, kFixed);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "covariance", covariance, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "running_covariance", running_covariance, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  Device device(op, x, mean, covariance, running_covariance, row_weight);
  STD_TORCH_CHECK(s.numel() > 0, op, ": expected at least one row");
  Tensor rho = device.empty({s.groups}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    run_intensity(
        device, Intensity<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                    s, data(x, in), data(mean, t), data(covariance, t), data(running_covariance, t),
                    data(row_weight, t), batch_weight, method, value, mutable_data(rho, t)});
  });
  return rho;
}

// a [B, D, D] T, of which the lower triangle is read. start [B, D, D] T or None: orthogonal
// matrices near the eigenvectors, where an iterative solver begins. Others ignore it, and so does
// an iterative one for a matrix that is not finite or not orthogonal.
inline void check_eigh(const Tensor& a, const OptionalTensor& start) {
  const ScalarType dtype = check_accumulation("eigh", a);
  STD_TORCH_CHECK(a.dim() == 3, "eigh: expected a of shape [B, D, D]");
  check_sizes("eigh", "a", a, dtype, {a.size(0), a.size(1), a.size(1)});
  check_sizes("eigh", "start", start, dtype, {a.size(0), a.size(1), a.size(1)});
}

template <class Device>
std::tuple<Tensor, Tensor> solve(Device& device, const Tensor& a, const OptionalTensor& start,
                                 int32_t* sweeps) {
  const int64_t B = a.size(0), D = a.size(1);
  Tensor values = device.empty({B, D}, a.scalar_type());
  Tensor vectors = device.empty({B, D, D}, a.scalar_type());
  if (a.numel() == 0) return {values, vectors};
  dispatch_accumulation(a.scalar_type(), [&](auto t) {
    device.eigh(B, D, data(a, t), mutable_data(values, t), mutable_data(vectors, t), data(start, t),
                sweeps);
  });
  return {values, vectors};
}

template <class Device>
std::tuple<Tensor, Tensor> eigh(const Tensor& a, const OptionalTensor& start) {
  check_eigh(a, start);
  Device device("eigh", a, start);
  return solve(device, a, start, nullptr);
}

// What eigh took: [B] int32, -1 for a solver that makes no sweeps.
template <class Device>
Tensor eigh_sweeps(const Tensor& a, const OptionalTensor& start) {
  check_eigh(a, start);
  Device device("eigh_sweeps", a, start);
  Tensor sweeps = device.empty({a.size(0)}, ScalarType::Int);
  if constexpr (Device::kIterates) {
    solve(device, a, start, mutable_data<int32_t>(sweeps));
  } else {
    fill(device, sweeps, Type<int32_t>{}, -1);
  }
  return sweeps;
}

// covariance and running_covariance [G, D, D] T; rho [G] T or None; batch_weight in (0, 1]; eps >=
// 0; start as in check_eigh.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> factor(const Tensor& covariance,
                                          const OptionalTensor& running_covariance,
                                          const OptionalTensor& rho, double batch_weight,
                                          double eps, int64_t kind, const OptionalTensor& start) {
  const char* op = "factor";
  const ScalarType dtype = check_accumulation(op, covariance);
  STD_TORCH_CHECK(covariance.dim() == 3, op, ": expected covariance of shape [G, D, D]");
  const int64_t G = covariance.size(0), D = covariance.size(1);
  check_sizes(op, "covariance", covariance, dtype, {G, D, D});
  check_sizes(op, "running_covariance", running_covariance, dtype, {G, D, D});
  check_sizes(op, "rho", rho, dtype, {G});
  check_sizes(op, "start", start, dtype, {G, D, D});
  check_kind(op, kind);
  Device device(op, covariance, running_covariance, rho, start);
  const bool spectral = kind != kCholesky;
  Tensor values = spectral ? device.empty({G, D}, dtype) : device.empty({0}, dtype);
  Tensor basis = spectral ? device.empty({G, D, D}, dtype) : device.empty({0}, dtype);
  Tensor matrix = device.empty({G, D, D}, dtype);
  if (covariance.numel() == 0) return {values, basis, matrix};
  dispatch_accumulation(dtype, [&](auto t) {
    run_factor(device, Factor<TypeOf<decltype(t)>>{
                           G, D, data(covariance, t), data(running_covariance, t), data(rho, t),
                           batch_weight, eps, kind, data(start, t), mutable_data(values, t),
                           mutable_data(basis, t), mutable_data(matrix, t)});
  });
  return {values, basis, matrix};
}

// x [M, C] or [N, C, L]; mean [C] T, matrix [G, D, D] T; gamma and beta [C] T or None.
template <class Device>
Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& matrix, const OptionalTensor& gamma,
             const OptionalTensor& beta) {
  const char* op = "apply";
  STD_TORCH_CHECK(matrix.dim() == 3, op, ": expected matrix of shape [G, D, D]");
  const Layout s = check_layout(op, x, matrix.size(0));
  const ScalarType dtype = check_accumulation(op, mean, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "matrix", matrix, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "beta", beta, dtype, {s.channels});
  Device device(op, x, mean, matrix, gamma, beta);
  Tensor y = empty_like(device, x);
  if (s.numel() == 0) return y;
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    run_apply(device, Apply<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                          s, data(x, in), data(mean, t), data(matrix, t), data(gamma, t),
                          data(beta, t), mutable_data(y, in)});
  });
  return y;
}

// x and grad [M, C] or [N, C, L] of one dtype; mean [C] T.
template <class Device>
std::tuple<Tensor, Tensor> backward_reduce(const Tensor& x, const Tensor& grad, const Tensor& mean,
                                           int64_t groups) {
  const char* op = "backward_reduce";
  const Layout s = check_layout(op, x, groups);
  check_same(op, "grad", grad, x);
  const ScalarType dtype = check_accumulation(op, mean, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  Device device(op, x, grad, mean);
  Tensor grad_sum = device.empty({s.channels}, dtype);
  Tensor cross = device.empty({s.groups, s.width, s.width}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    if (s.numel() == 0) {
      fill(device, grad_sum, t, 0);
      fill(device, cross, t, 0);
      return;
    }
    run_backward_reduce(device, BackwardReduce<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                                    s, data(x, in), data(grad, in), data(mean, t),
                                    mutable_data(grad_sum, t), mutable_data(cross, t)});
  });
  return {grad_sum, cross};
}

// cross, basis and matrix [G, D, D] T, eigenvalues [G, D] T (basis and eigenvalues [0] for
// cholesky); gamma [G * D] T or None; rho [G] T or None.
template <class Device>
std::tuple<Tensor, Tensor> backward_matrix(const Tensor& cross, const Tensor& eigenvalues,
                                           const Tensor& basis, const Tensor& matrix,
                                           const OptionalTensor& gamma, const OptionalTensor& rho,
                                           double batch_weight, int64_t kind) {
  const char* op = "backward_matrix";
  const ScalarType dtype = check_accumulation(op, cross);
  STD_TORCH_CHECK(cross.dim() == 3, op, ": expected cross of shape [G, D, D]");
  const int64_t G = cross.size(0), D = cross.size(1);
  check_kind(op, kind);
  check_sizes(op, "cross", cross, dtype, {G, D, D});
  check_factors(op, dtype, G, D, kind, eigenvalues, basis, matrix);
  check_sizes(op, "gamma", gamma, dtype, {G * D});
  check_sizes(op, "rho", rho, dtype, {G});
  Device device(op, cross, eigenvalues, basis, matrix, gamma, rho);
  Tensor inner = device.empty({G, D, D}, dtype);
  Tensor grad_gamma = device.empty({G * D}, dtype);
  if (cross.numel() == 0) return {inner, grad_gamma};
  dispatch_accumulation(dtype, [&](auto t) {
    run_backward_matrix(device, BackwardMatrix<TypeOf<decltype(t)>>{
                                    G, D, data(cross, t), data(eigenvalues, t), data(basis, t),
                                    data(matrix, t), data(gamma, t), data(rho, t), batch_weight,
                                    kind, mutable_data(inner, t), mutable_data(grad_gamma, t)});
  });
  return {inner, grad_gamma};
}

// x and grad [M, C] or [N, C, L] of one dtype; mean, grad_sum and gamma [C] T; matrix and inner
// [G, D, D] T; row_weight [M] T or None for 1/M.
template <class Device>
Tensor backward_apply(const Tensor& x, const Tensor& grad, const Tensor& mean,
                      const Tensor& grad_sum, const Tensor& matrix, const Tensor& inner,
                      const OptionalTensor& gamma, const OptionalTensor& row_weight) {
  const char* op = "backward_apply";
  STD_TORCH_CHECK(matrix.dim() == 3, op, ": expected matrix of shape [G, D, D]");
  const Layout s = check_layout(op, x, matrix.size(0));
  const ScalarType dtype = check_accumulation(op, mean, x);
  check_same(op, "grad", grad, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_sizes(op, "grad_sum", grad_sum, dtype, {s.channels});
  check_sizes(op, "matrix", matrix, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "inner", inner, dtype, {s.groups, s.width, s.width});
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  Device device(op, x, grad, mean, grad_sum, matrix, inner, gamma, row_weight);
  Tensor dx = empty_like(device, x);
  if (s.numel() == 0) return dx;
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    run_backward_apply(device, BackwardApply<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                                   s, data(x, in), data(grad, in), data(mean, t), data(grad_sum, t),
                                   data(matrix, t), data(inner, t), data(gamma, t),
                                   data(row_weight, t), mutable_data(dx, in)});
  });
  return dx;
}

// x [M, C] or [N, C, L]; gamma, beta [C], row_weight [M], running_covariance and start (as in
// check_eigh) [G, D, D], all T or None.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> whiten_forward(
    const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& row_weight, const OptionalTensor& running_covariance, int64_t groups,
    double batch_weight, double eps, int64_t kind, bool double_precision, int64_t method,
    double value, const OptionalTensor& start) {
  const char* op = "whiten_forward";
  const Layout s = check_layout(op, x, groups);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  const int64_t G = s.groups, D = s.width;
  check_kind(op, kind);
  check_method(op, method, kNoShrinkage);
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "beta", beta, dtype, {s.channels});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  check_sizes(op, "running_covariance", running_covariance, dtype, {G, D, D});
  check_sizes(op, "start", start, dtype, {G, D, D});
  Device device(op, x, gamma, beta, row_weight, running_covariance, start);
  STD_TORCH_CHECK(s.numel() > 0, op, ": expected at least one row");
  const bool spectral = kind != kCholesky;
  Tensor y = empty_like(device, x), mean = device.empty({s.channels}, dtype);
  Tensor covariance = device.empty({G, D, D}, dtype), matrix = device.empty({G, D, D}, dtype);
  Tensor values = spectral ? device.empty({G, D}, dtype) : device.empty({0}, dtype);
  Tensor basis = spectral ? device.empty({G, D, D}, dtype) : device.empty({0}, dtype);
  Tensor rho = device.empty({method == kNoShrinkage ? 0 : G}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    run_whiten_forward(
        device, WhitenForward<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                    s, data(x, in), data(gamma, t), data(beta, t), data(row_weight, t),
                    data(running_covariance, t), batch_weight, eps, kind, method, value,
                    data(start, t), mutable_data(y, in), mutable_data(mean, t),
                    mutable_data(covariance, t), mutable_data(values, t), mutable_data(basis, t),
                    mutable_data(matrix, t), mutable_data(rho, t)});
  });
  return {y, mean, covariance, values, basis, matrix, rho};
}

// grad like x; mean [C], eigenvalues [G, D], basis and matrix [G, D, D], rho [G], all T.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> whiten_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& mean, const Tensor& eigenvalues,
                                                   const Tensor& basis, const Tensor& matrix,
                                                   const OptionalTensor& gamma,
                                                   const OptionalTensor& rho,
                                                   const OptionalTensor& row_weight,
                                                   double batch_weight, int64_t kind) {
  const char* op = "whiten_backward";
  STD_TORCH_CHECK(matrix.dim() == 3, op, ": expected matrix of shape [G, D, D]");
  const Layout s = check_layout(op, x, matrix.size(0));
  const ScalarType dtype = check_accumulation(op, mean, x);
  check_kind(op, kind);
  check_same(op, "grad", grad, x);
  check_sizes(op, "mean", mean, dtype, {s.channels});
  check_factors(op, dtype, s.groups, s.width, kind, eigenvalues, basis, matrix);
  check_sizes(op, "gamma", gamma, dtype, {s.channels});
  check_sizes(op, "rho", rho, dtype, {s.groups});
  check_sizes(op, "row_weight", row_weight, dtype, {s.rows()});
  Device device(op, x, grad, mean, eigenvalues, basis, matrix, gamma, rho, row_weight);
  STD_TORCH_CHECK(s.numel() > 0, op, ": expected at least one row");
  Tensor dx = empty_like(device, x);
  Tensor grad_gamma = device.empty({s.channels}, dtype);
  Tensor grad_sum = device.empty({s.channels}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    run_whiten_backward(
        device,
        WhitenBackward<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
            s, data(grad, in), data(x, in), data(mean, t), data(eigenvalues, t), data(basis, t),
            data(matrix, t), data(gamma, t), data(rho, t), data(row_weight, t), batch_weight, kind,
            mutable_data(dx, in), mutable_data(grad_gamma, t), mutable_data(grad_sum, t)});
  });
  return {dx, grad_gamma, grad_sum};
}

// The sample side: the dual form, for M < D. zca, rows only. x [M, C]; row_weight [M] T, strictly
// positive with sum 1, or None for 1/M.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> sample_statistics(const Tensor& x,
                                                     const OptionalTensor& row_weight,
                                                     int64_t groups, bool double_precision) {
  const char* op = "sample_statistics";
  const Layout s = check_rows(op, x, groups);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  check_sizes(op, "row_weight", row_weight, dtype, {s.samples});
  Device device(op, x, row_weight);
  Tensor mean = device.empty({s.channels}, dtype);
  Tensor scaled = device.empty({s.samples, s.channels}, dtype);
  Tensor gram = device.empty({s.groups, s.samples, s.samples}, dtype);
  dispatch(device, x.scalar_type(), dtype, [&](auto in, auto t) {
    if (s.numel() == 0) return fill(device, mean, t, kNaN);
    run_sample_statistics(device, SampleStatistics<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                                      s, data(x, in), data(row_weight, t), mutable_data(mean, t),
                                      mutable_data(scaled, t), mutable_data(gram, t)});
  });
  return {mean, scaled, gram};
}

// scaled [M, C] T; eigenvalues [G, M] T and eigenvectors [G, M, M] T of the Gram matrices.
template <class Device>
std::tuple<Tensor, Tensor> sample_apply(const Tensor& scaled, const Tensor& eigenvalues,
                                        const Tensor& eigenvectors,
                                        const OptionalTensor& row_weight, const OptionalTensor& rho,
                                        double eps, ScalarType out_dtype) {
  const char* op = "sample_apply";
  STD_TORCH_CHECK(eigenvalues.dim() == 2, op, ": expected eigenvalues of shape [G, M]");
  const Layout s = check_rows(op, scaled, eigenvalues.size(0));
  check_floating(op, "out_dtype", out_dtype);
  const ScalarType dtype = check_accumulation(op, scaled);
  STD_TORCH_CHECK(out_dtype != ScalarType::Double || dtype == ScalarType::Double, op,
                  ": expected rows in float64 for a float64 output");
  check_gram(op, s, dtype, eigenvalues, eigenvectors, row_weight, rho);
  Device device(op, scaled, eigenvalues, eigenvectors, row_weight, rho);
  Tensor y = device.empty({s.samples, s.channels}, out_dtype);
  Tensor projected = device.empty({s.groups, s.samples, s.width}, dtype);
  if (s.numel() == 0) return {y, projected};
  dispatch(device, out_dtype, dtype, [&](auto out, auto t) {
    run_sample_apply(device, SampleApply<TypeOf<decltype(out)>, TypeOf<decltype(t)>>{
                                 s, data(scaled, t), data(eigenvalues, t), data(eigenvectors, t),
                                 data(row_weight, t), data(rho, t), eps, mutable_data(y, out),
                                 mutable_data(projected, t)});
  });
  return {y, projected};
}

// grad [M, C]; projected [G, M, D] T.
template <class Device>
Tensor sample_backward(const Tensor& grad, const Tensor& projected, const Tensor& eigenvalues,
                       const Tensor& eigenvectors, const OptionalTensor& row_weight,
                       const OptionalTensor& rho, double eps) {
  const char* op = "sample_backward";
  STD_TORCH_CHECK(projected.dim() == 3, op, ": expected projected of shape [G, M, D]");
  const Layout s = check_rows(op, grad, projected.size(0));
  const ScalarType dtype = check_accumulation(op, projected, grad);
  check_sizes(op, "projected", projected, dtype, {s.groups, s.samples, s.width});
  check_gram(op, s, dtype, eigenvalues, eigenvectors, row_weight, rho);
  Device device(op, grad, projected, eigenvalues, eigenvectors, row_weight, rho);
  Tensor dx = device.empty({s.samples, s.channels}, grad.scalar_type());
  if (s.numel() == 0) return dx;
  dispatch(device, grad.scalar_type(), dtype, [&](auto in, auto t) {
    run_sample_backward(device, SampleBackward<TypeOf<decltype(in)>, TypeOf<decltype(t)>>{
                                    s, data(grad, in), data(projected, t), data(eigenvalues, t),
                                    data(eigenvectors, t), data(row_weight, t), data(rho, t), eps,
                                    mutable_data(dx, in)});
  });
  return dx;
}

// For FASTWHITEN_LIBRARY: the schemas. backends/stages.py has them too, and a test compares.
inline void define_all(torch::stable::detail::StableLibrary& m) {
  m.def(
      "whiten_forward(Tensor x, Tensor? gamma, Tensor? beta, Tensor? row_weight,"
      " Tensor? running_covariance, int groups, float batch_weight, float eps, int kind,"
      " bool double_precision, int shrink_method, float shrink_value, Tensor? start=None)"
      " -> (Tensor y, Tensor mean, Tensor covariance, Tensor eigenvalues, Tensor basis,"
      " Tensor matrix, Tensor rho)");
  m.def(
      "whiten_backward(Tensor grad, Tensor x, Tensor mean, Tensor eigenvalues, Tensor basis,"
      " Tensor matrix, Tensor? gamma, Tensor? rho, Tensor? row_weight, float batch_weight,"
      " int kind) -> (Tensor dx, Tensor grad_gamma, Tensor grad_sum)");
  m.def(
      "statistics(Tensor x, Tensor? row_weight, int groups, bool double_precision)"
      " -> (Tensor mean, Tensor covariance)");
  m.def(
      "intensity(Tensor x, Tensor mean, Tensor covariance, Tensor? running_covariance,"
      " Tensor? row_weight, float batch_weight, int method, float value) -> Tensor");
  m.def("eigh(Tensor a, Tensor? start=None) -> (Tensor eigenvalues, Tensor eigenvectors)");
  m.def("eigh_sweeps(Tensor a, Tensor? start=None) -> Tensor");
  m.def(
      "factor(Tensor covariance, Tensor? running_covariance, Tensor? rho, float batch_weight,"
      " float eps, int kind, Tensor? start=None)"
      " -> (Tensor eigenvalues, Tensor basis, Tensor matrix)");
  m.def("apply(Tensor x, Tensor mean, Tensor matrix, Tensor? gamma, Tensor? beta) -> Tensor");
  m.def(
      "backward_reduce(Tensor x, Tensor grad, Tensor mean, int groups)"
      " -> (Tensor grad_sum, Tensor cross)");
  m.def(
      "backward_matrix(Tensor cross, Tensor eigenvalues, Tensor basis, Tensor matrix,"
      " Tensor? gamma, Tensor? rho, float batch_weight, int kind)"
      " -> (Tensor inner, Tensor grad_gamma)");
  m.def(
      "backward_apply(Tensor x, Tensor grad, Tensor mean, Tensor grad_sum, Tensor matrix,"
      " Tensor inner, Tensor? gamma, Tensor? row_weight) -> Tensor");
  m.def(
      "sample_statistics(Tensor x, Tensor? row_weight, int groups, bool double_precision)"
      " -> (Tensor mean, Tensor scaled, Tensor gram)");
  m.def(
      "sample_apply(Tensor scaled, Tensor eigenvalues, Tensor eigenvectors, Tensor? row_weight,"
      " Tensor? rho, float eps, ScalarType out_dtype) -> (Tensor y, Tensor projected)");
  m.def(
      "sample_backward(Tensor grad, Tensor projected, Tensor eigenvalues, Tensor eigenvectors,"
      " Tensor? row_weight, Tensor? rho, float eps) -> Tensor");
}

// For FASTWHITEN_LIBRARY_IMPL: every op on this device.
template <class Device>
void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("whiten_forward", TORCH_BOX(&whiten_forward<Device>));
  m.impl("whiten_backward", TORCH_BOX(&whiten_backward<Device>));
  m.impl("statistics", TORCH_BOX(&statistics<Device>));
  m.impl("intensity", TORCH_BOX(&intensity<Device>));
  m.impl("eigh", TORCH_BOX(&eigh<Device>));
  m.impl("eigh_sweeps", TORCH_BOX(&eigh_sweeps<Device>));
  m.impl("factor", TORCH_BOX(&factor<Device>));
  m.impl("apply", TORCH_BOX(&apply<Device>));
  m.impl("backward_reduce", TORCH_BOX(&backward_reduce<Device>));
  m.impl("backward_matrix", TORCH_BOX(&backward_matrix<Device>));
  m.impl("backward_apply", TORCH_BOX(&backward_apply<Device>));
  m.impl("sample_statistics", TORCH_BOX(&sample_statistics<Device>));
  m.impl("sample_apply", TORCH_BOX(&sample_apply<Device>));
  m.impl("sample_backward", TORCH_BOX(&sample_backward<Device>));
}

}  // namespace ops
}  // namespace fastwhiten
