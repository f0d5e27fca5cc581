// dx_n = (gamma * (g_n - p_n grad_sum)) W^T - p_n (x_n - mean) inner.
//
// One block per 64 rows and 64 channels of dx, as in apply.cuh: two products, of x and of grad,
// into the same sums. Shifts, weights, gamma and casts happen while loading and storing. Bytes: x
// and grad once per 64 channels, dx once. Determinism: every element is one sum, in order. Shared
// memory: two slabs, 17 KiB (float).
#pragma once

#include "apply.cuh"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct BackwardApplyArguments {
  Layout s;
  const In* x;        // [M, C] or [N, C, L]
  const In* grad;     // like x
  const T* mean;      // [C]
  const T* grad_sum;  // [C]
  const T* matrix;    // [G, D, D]
  const T* inner;     // [G, D, D]
  const T* gamma;     // [C] or null
  const T* p;         // [M] or null for 1/M
  In* dx;             // like x
};

template <bool kNarrow, class In, class T>
__global__ void __launch_bounds__(kThreads)
    backward_apply_kernel(BackwardApplyArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const Layout s = in.s;
  const RowTile tile = row_tile(s, blockIdx.x);
  const T uniform = T(1) / static_cast<T>(s.rows());
  const auto of_grad = [&](int64_t r, int64_t channel) {
    const T share = (in.p != nullptr ? in.p[r] : uniform) * in.grad_sum[channel];
    const T g = convert<T>(in.grad[row_offset(s, r) + channel * s.length]) - share;
    return in.gamma != nullptr ? g * in.gamma[channel] : g;
  };
  const auto of_x = [&](int64_t r, int64_t channel) {
    const T xc = convert<T>(in.x[row_offset(s, r) + channel * s.length]) - in.mean[channel];
    return -(in.p != nullptr ? in.p[r] : uniform) * xc;
  };
  const auto transposed = [&](int64_t g, int64_t k, int64_t c) {
    return in.matrix[(g * s.width + c) * s.width + k];
  };
  const auto symmetric = [&](int64_t g, int64_t k, int64_t c) {
    return in.inner[(g * s.width + k) * s.width + c];
  };
  const auto place = [&](int r, int c) -> In& {
    return in.dx[row_offset(s, tile.row + r) + (tile.channel + c) * s.length];
  };
  if constexpr (kNarrow) {
    const SharedArray<T> wide(arena, 0, 2 * kSlab), w(arena, 2 * kSlab * sizeof(T), kSlab);
    NarrowSums<T> sums;
    narrow_row_product(s, tile, wide, w, of_x, symmetric, sums);
    narrow_row_product(s, tile, wide, w, of_grad, transposed, sums);
    sums.each(s, tile, [&](int r, int c, T sum) { place(r, c) = round_to<In>(sum); });
  } else {
    const SharedArray<T> a(arena, 0, kSlab), b(arena, kSlab * sizeof(T), kSlab);
    Sums<T> sums;
    row_product(s, tile, a, b, of_x, false, symmetric, sums);
    row_product(s, tile, a, b, of_grad, true, transposed, sums);
    each_result(s, tile, sums, [&](int r, int c, T sum) { place(r, c) = round_to<In>(sum); });
  }
}

template <class Device, class In, class T>
void run_backward_apply(Device& device, const BackwardApply<In, T>& args) {
  const BackwardApplyArguments<In, T> arguments{args.s,        args.x,      args.grad,  args.mean,
                                                args.grad_sum, args.matrix, args.inner, args.gamma,
                                                args.p,        args.dx};
  if (narrow(args.s)) {
    device.launch(backward_apply_kernel<true, In, T>, row_tiles(args.s), kThreads,
                  kNarrowApplySharedBytes<T>, arguments);
  } else {
    device.launch(backward_apply_kernel<false, In, T>, row_tiles(args.s), kThreads,
                  kApplySharedBytes<T>, arguments);
  }
}

}  // namespace cuda
}  // namespace fastwhiten
