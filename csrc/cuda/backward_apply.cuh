// dx_n = (gamma * (g_n - p_n grad_sum)) W^T - p_n (x_n - mean) inner.
//
// Two products of rows with matrices into the same sums, of x and of grad: apply.cuh. Shifts,
// weights, gamma and casts happen on the way of rows, and while dx is stored. Bytes: x and grad
// once per 64 channels, dx once. Determinism: as there.
#pragma once

#include "apply.cuh"

namespace fastwhiten {
namespace cuda {

// The terms of a RowProduct.
template <class In, class T>
struct BackwardApplyArguments {
  using Input = In;
  using Sum = T;
  static constexpr int kCount = 2;
  static constexpr bool kTransposed[] = {false, true};
  Layout s;
  RowTiling tiling;
  bool vectors;        // moves_vectors
  In* to;              // dx, like x
  const In* x;         // [M, C] or [N, C, L]
  const In* grad;      // like x
  const T* mean;       // [C]
  const T* grad_sum;   // [C]
  const T* whitening;  // [G, D, D]
  const T* inner;      // [G, D, D], symmetric
  const T* gamma;      // [C] or null
  const T* p;          // [M] or null for 1 / M
  T uniform;           // 1 / M

  __device__ const In* rows(int n) const { return n == 0 ? x : grad; }
  __device__ const T* matrix(int n) const { return n == 0 ? inner : whitening; }
  __device__ T weight(int64_t row) const { return p != nullptr ? p[row] : uniform; }
  // -p (x - mean), or gamma (g - p grad_sum).
  template <int kTerm>
  __device__ auto numbers(int64_t channel) const {
    const T shift = (kTerm == 0 ? mean : grad_sum)[channel];
    const T scale = kTerm > 0 && gamma != nullptr ? gamma[channel] : T(1);
    return [shift, scale](T value, T weight) {
      return kTerm == 0 ? -weight * (value - shift) : scale * (value - weight * shift);
    };
  }
  __device__ Affine<T> finish(int64_t) const { return {T(1), T(0)}; }
};

template <class Device, class In, class T>
void run_backward_apply(Device& device, const BackwardApply<In, T>& args) {
  run_rows(device, BackwardApplyArguments<In, T>{
                       args.s, RowTiling(args.s, 1),
                       moves_vectors<In>(args.s, {args.x, args.grad, args.dx}), args.dx, args.x,
                       args.grad, args.mean, args.grad_sum, args.matrix, args.inner, args.gamma,
                       args.p, T(1) / static_cast<T>(args.s.rows())});
}

}  // namespace cuda
}  // namespace fastwhiten
