// y_n = ((x_n - mean) W_g) * gamma + beta.
//
// One block per 64 rows and 64 channels of y; it walks over the D channels of x in slabs of 32.
// The mean is subtracted while x is loaded (x W - mean W would cancel when |mean| >> std); gamma,
// beta and the cast to y's dtype happen while y is stored. Bytes: x once per 64 channels, y once.
// Determinism: every element is one sum, in order. Shared memory: two slabs, 17 KiB (float).
// Planes: channels are the rows of the tile, so that threads side by side write side by side.
#pragma once

#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct ApplyArguments {
  Layout s;
  const In* x;      // [M, C] or [N, C, L]
  const T* mean;    // [C]
  const T* matrix;  // [G, D, D]
  const T* gamma;   // [C] or null
  const T* beta;    // [C] or null
  In* y;            // like x
};

// 64 rows by 64 channels of the output: where a block works.
struct RowTile {
  int64_t row, channel;  // first ones
  int rows, channels;
  int64_t group;  // of the first channel
};

__host__ __device__ inline int64_t row_tiles(const Layout& s) {
  return ceil_div(s.rows(), kTile) *
         (narrow(s) ? ceil_div(s.channels, packed_width(s)) : s.groups * ceil_div(s.width, kTile));
}
__device__ inline RowTile row_tile(const Layout& s, int64_t t) {
  const int64_t n = ceil_div(s.rows(), kTile), row = t % n * kTile, b = t / n;
  const int64_t left = s.rows() - row;
  const int rows = static_cast<int>(left < kTile ? left : kTile);
  if (narrow(s)) {
    const int64_t first = b * packed_width(s), rest = s.channels - first;
    const int channels = static_cast<int>(rest < packed_width(s) ? rest : packed_width(s));
    return {row, first, rows, channels, first / s.width};
  }
  const int64_t per = ceil_div(s.width, kTile), first = b % per * kTile, rest = s.width - first;
  return {row, b / per * s.width + first, rows, static_cast<int>(rest < kTile ? rest : kTile),
          b / per};
}

// sums += sum over k < D of x(row, k) w(k, channel), for a group of more than half a tile. x gets
// the row and the channel in its group, w both channels in their group. w_depth_first: w's
// neighbours in memory are neighbours in k.
template <class T, class X, class W>
__device__ __forceinline__ void row_product(const Layout& s, const RowTile& tile,
                                            const SharedArray<T>& a, const SharedArray<T>& b,
                                            const X& x, bool w_depth_first, const W& w,
                                            Sums<T>& sums) {
  const int64_t first = tile.channel - tile.group * s.width;  // in the group
  const auto of_row = [&](int64_t k, int i) {
    return i < tile.rows ? x(tile.row + i, tile.group * s.width + k) : T(0);
  };
  const auto of_channel = [&](int64_t k, int j) {
    return j < tile.channels ? w(tile.group, k, first + j) : T(0);
  };
  if (s.planes()) {
    product(a, b, 0, s.width, w_depth_first, of_channel, false, of_row, sums);
  } else {
    product(a, b, 0, s.width, true, of_row, w_depth_first, of_channel, sums);
  }
}

// The elements of a tile that a thread owns where groups share it: n = 0, 1, ... at thread + 256 n,
// numbered so that threads side by side are side by side in memory.
template <class T>
struct NarrowSums {
  static constexpr int kCount = kTile * kTile / kThreads;
  T v[kCount];

  __device__ __forceinline__ NarrowSums() {
#pragma unroll
    for (int n = 0; n < kCount; ++n) v[n] = T(0);
  }
  static __device__ __forceinline__ int row(const Layout& s, int n) {
    const int e = static_cast<int>(threadIdx.x) + n * kThreads;
    return s.planes() ? e % kTile : e / kTile;
  }
  static __device__ __forceinline__ int channel(const Layout& s, int n) {
    const int e = static_cast<int>(threadIdx.x) + n * kThreads;
    return s.planes() ? e / kTile : e % kTile;
  }
  // f(row, channel, sum) for every element of this thread.
  template <class F>
  __device__ __forceinline__ void each(const Layout& s, const RowTile& tile, const F& f) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int r = row(s, n), c = channel(s, n);
      if (r < tile.rows && c < tile.channels) f(r, c, v[n]);
    }
  }
};

// row_product for groups that share a tile. wide holds all channels of x, matrices those of the
// groups, [D, 64]. Groups are not padded with zeros to one another: 0 * NaN of a neighbour would
// be NaN.
template <class T, class X, class W>
__device__ __forceinline__ void narrow_row_product(const Layout& s, const RowTile& tile,
                                                   const SharedArray<T>& wide,
                                                   const SharedArray<T>& matrices, const X& x,
                                                   const W& w, NarrowSums<T>& sums) {
  const int D = static_cast<int>(s.width), thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // what was here before is read
  for (int e = thread; e < kTile * kTile; e += kThreads) {
    const int r = s.planes() ? e % kTile : e / kTile, c = s.planes() ? e / kTile : e % kTile;
    const bool inside = r < tile.rows && c < tile.channels;
    wide[c * kStride + r] = inside ? x(tile.row + r, tile.channel + c) : T(0);
  }
  for (int e = thread; e < D * kTile; e += kThreads) {
    const int k = e / kTile, c = e % kTile;
    matrices[k * kStride + c] = c < tile.channels ? w(tile.group + c / D, k, c % D) : T(0);
  }
  __syncthreads();
  int first[NarrowSums<T>::kCount];  // channel of the group that element n belongs to
#pragma unroll
  for (int n = 0; n < NarrowSums<T>::kCount; ++n) {
    const int c = NarrowSums<T>::channel(s, n);
    first[n] = c < tile.channels ? c / D * D : 0;
  }
  for (int k = 0; k < D; ++k) {
#pragma unroll
    for (int n = 0; n < NarrowSums<T>::kCount; ++n) {
      const int r = NarrowSums<T>::row(s, n), c = NarrowSums<T>::channel(s, n);
      sums.v[n] += wide[(first[n] + k) * kStride + r] * matrices[k * kStride + c];
    }
  }
}

// f(row, channel, sum) with the tile's roles undone: planes have channels as rows of the tile.
template <class T, class F>
__device__ __forceinline__ void each_result(const Layout& s, const RowTile& tile, Sums<T>& sums,
                                            const F& f) {
  sums.each([&](int i, int j, T sum) {
    const int r = s.planes() ? j : i, c = s.planes() ? i : j;
    if (r < tile.rows && c < tile.channels) f(r, c, sum);
  });
}

template <class T>
constexpr int64_t kApplySharedBytes = 2 * kSlab * sizeof(T);
template <class T>
constexpr int64_t kNarrowApplySharedBytes = 3 * kSlab * sizeof(T);

template <bool kNarrow, class In, class T>
__global__ void __launch_bounds__(kThreads) apply_kernel(ApplyArguments<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const Layout s = in.s;
  const RowTile tile = row_tile(s, blockIdx.x);
  const auto centered = [&](int64_t r, int64_t channel) {
    return convert<T>(in.x[row_offset(s, r) + channel * s.length]) - in.mean[channel];
  };
  const auto weight = [&](int64_t g, int64_t k, int64_t c) {
    return in.matrix[(g * s.width + k) * s.width + c];
  };
  const auto store = [&](int r, int c, T sum) {
    const int64_t channel = tile.channel + c;
    if (in.gamma != nullptr) sum *= in.gamma[channel];
    if (in.beta != nullptr) sum += in.beta[channel];
    in.y[row_offset(s, tile.row + r) + channel * s.length] = round_to<In>(sum);
  };
  if constexpr (kNarrow) {
    const SharedArray<T> wide(arena, 0, 2 * kSlab), w(arena, 2 * kSlab * sizeof(T), kSlab);
    NarrowSums<T> sums;
    narrow_row_product(s, tile, wide, w, centered, weight, sums);
    sums.each(s, tile, store);
  } else {
    const SharedArray<T> a(arena, 0, kSlab), b(arena, kSlab * sizeof(T), kSlab);
    Sums<T> sums;
    row_product(s, tile, a, b, centered, false, weight, sums);
    each_result(s, tile, sums, store);
  }
}

template <class Device, class In, class T>
void run_apply(Device& device, const Apply<In, T>& args) {
  const ApplyArguments<In, T> arguments{args.s,     args.x,    args.mean, args.matrix,
                                        args.gamma, args.beta, args.y};
  if (narrow(args.s)) {
    device.launch(apply_kernel<true, In, T>, row_tiles(args.s), kThreads,
                  kNarrowApplySharedBytes<T>, arguments);
  } else {
    device.launch(apply_kernel<false, In, T>, row_tiles(args.s), kThreads, kApplySharedBytes<T>,
                  arguments);
  }
}

}  // namespace cuda
}  // namespace fastwhiten
