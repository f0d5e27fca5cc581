// y_n = ((x_n - mean) W_g) * gamma + beta.
//
// The mean is subtracted on x's way (x W - mean W would cancel when |mean| >> std); gamma, beta and
// the cast to y's dtype happen while y is stored. Bytes, determinism, shared memory: those of
// row_products.cuh, of narrow.cuh where groups share a tile.
#pragma once

#include "narrow.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

// The term of a RowProduct, and what becomes of it.
template <class In, class T>
struct ApplyArguments {
  using Input = In;
  using Sum = T;
  static constexpr int kCount = 1;
  static constexpr bool kTransposed[] = {false};
  Layout s;
  RowTiling tiling;
  bool vectors;        // moves_vectors
  In* to;              // y, like x
  const In* x;         // [M, C] or [N, C, L]
  const T* mean;       // [C]
  const T* whitening;  // [G, D, D]
  const T* gamma;      // [C] or null
  const T* beta;       // [C] or null

  __device__ const In* rows(int) const { return x; }
  __device__ const T* matrix(int) const { return whitening; }
  __device__ T weight(int64_t) const { return T(1); }
  template <int kTerm>
  __device__ auto numbers(int64_t channel) const {
    return [shift = mean[channel]](T value, T) { return value - shift; };
  }
  __device__ Affine<T> finish(int64_t channel) const {
    return {gamma != nullptr ? gamma[channel] : T(1), beta != nullptr ? beta[channel] : T(0)};
  }
};

// kRowTeams: as in row_products.cuh, 0 where groups share a tile.
template <int kRowTeams, class Arguments>
__global__ void __launch_bounds__(kThreads, kRowTeams > 0 ? 2 : 1) rows_kernel(Arguments in) {
  using In = typename Arguments::Input;
  using T = typename Arguments::Sum;
  FASTWHITEN_SHARED_MEMORY(arena);
  if constexpr (kRowTeams == 0) {
    const NarrowShared<T> at(arena);
    in.s.planes() ? store_narrow<true>(at, in) : store_narrow<false>(at, in);
  } else {
    const ProductShared<kRowTeams, In, T> at(arena);
    in.s.planes() ? store_product<true>(at, in) : store_product<false>(at, in);
  }
}

template <int kRowTeams, class Device, class Arguments>
void launch_rows(Device& device, Arguments arguments, int64_t bytes) {
  arguments.tiling = RowTiling(arguments.s, kRowTeams > 0 ? kRowTeams : 1);
  device.launch(rows_kernel<kRowTeams, Arguments>, arguments.tiling.count, kThreads, bytes,
                arguments);
}
template <class Device, class Arguments>
void run_rows(Device& device, const Arguments& arguments) {
  using In = typename Arguments::Input;
  using T = typename Arguments::Sum;
  if (narrow(arguments.s)) {
    launch_rows<0>(device, arguments, NarrowShared<T>::kBytes);
  } else if (row_teams<T>(arguments.s) > 1) {
    launch_rows<kTeams<T>>(device, arguments, ProductShared<kTeams<T>, In, T>::kBytes);
  } else {
    launch_rows<1>(device, arguments, ProductShared<1, In, T>::kBytes);
  }
}

template <class Device, class In, class T>
void run_apply(Device& device, const Apply<In, T>& args) {
  run_rows(device, ApplyArguments<In, T>{args.s, RowTiling(args.s, 1),
                                         moves_vectors<In>(args.s, {args.x, args.y}), args.y,
                                         args.x, args.mean, args.matrix, args.gamma, args.beta});
}

}  // namespace cuda
}  // namespace fastwhiten
