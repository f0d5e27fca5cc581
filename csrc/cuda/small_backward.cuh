// A whole backward of one group in one block, for few rows: sums -> inner -> dx.
//
// The formulas are those of backward_reduce.cuh, backward_matrix.cuh and backward_apply.cuh. x
// (centred) and grad are read once and stay in shared memory; the D x D products take turns in two
// arrays there. Sums over rows are made of sums over 32 of them. Bytes: x, grad and dx once, the
// matrices a few times (they stay in the L1 cache). Determinism: one order of every sum; a group
// never sees its neighbours. Shared memory: 2 D (D + 1) + 2 M (D + 1) + M + 2 D numbers, 99 KiB for
// float, M = 128 and D = 64. Serves D <= 64 (small_shape), at most 512 rows, every kind.
#pragma once

#include "backward_matrix.cuh"
#include "small_forward.cuh"

namespace fastwhiten {
namespace cuda {

template <class In, class T>
struct SmallBackward {
  Layout s;
  const In* grad;                // like x
  const In* x;                   // [M, C] or [N, C, L]
  const T* mean;                 // [C]
  const T* p;                    // [M] or null for 1 / M
  BackwardMatrixArguments<T> m;  // without cross and inner, which stay in shared memory
  In* dx;                        // like x
  T* grad_sum;                   // [C]
};

template <class T>
__host__ __device__ constexpr int64_t small_backward_bytes(int64_t rows, int64_t D) {
  return ((2 * D + 2 * rows) * (D / 2 * 2 + 1) + rows + 2 * D) * static_cast<int64_t>(sizeof(T));
}

template <class T>
struct SmallViews {
  __device__ SmallViews(char* arena, int rows_, int width)
      : rows(rows_),
        D(width),
        stride(width / 2 * 2 + 1),
        first(arena, 0, D * stride),
        second(arena, at(D * stride), D * stride),
        x(arena, at(2 * D * stride), rows * stride),
        grad(arena, at((2 * D + rows) * stride), rows * stride),
        p(arena, at((2 * D + 2 * rows) * stride), rows),
        sums(arena, at((2 * D + 2 * rows) * stride + rows), D),
        diagonal(arena, at((2 * D + 2 * rows) * stride + rows + D), D) {}
  int rows, D, stride;           // odd: a column's rows lie in different banks
  SharedArray<T> first, second;  // [D, stride]: products, in turn
  SharedArray<T> x, grad;        // [rows, stride]
  SharedArray<T> p;              // [rows]
  SharedArray<T> sums;           // [D] sums of grad
  SharedArray<T> diagonal;       // [D] of core

 private:
  __device__ static constexpr int64_t at(int numbers) {
    return int64_t{numbers} * static_cast<int64_t>(sizeof(T));
  }
};

// x - mean, grad, weights, sums of grad. Barriers between and after.
template <class In, class T>
__device__ __forceinline__ void load_small(const SmallBackward<In, T>& in, int64_t g,
                                           const SmallViews<T>& v) {
  const int count = v.rows * v.D;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kSmallThreads) {
    const int r = in.s.planes() ? e % v.rows : e / v.D, c = in.s.planes() ? e / v.rows : e % v.D;
    const int64_t channel = g * v.D + c, from = row_offset(in.s, r) + channel * in.s.length;
    v.x[r * v.stride + c] = convert<T>(in.x[from]) - in.mean[channel];
    v.grad[r * v.stride + c] = convert<T>(in.grad[from]);
  }
  for (int r = static_cast<int>(threadIdx.x); r < v.rows; r += kSmallThreads) {
    v.p[r] = in.p != nullptr ? in.p[r] : T(1) / static_cast<T>(v.rows);
  }
  __syncthreads();
  const Place me = place();
  for (int c = me.warp; c < v.D; c += me.warps) {
    T sum = 0;
    for (int r = me.lane; r < v.rows; r += 32) sum += v.grad[r * v.stride + c];
    sum = warp_sum(sum);
    if (me.lane != 0) continue;
    v.sums[c] = sum;
    in.grad_sum[g * v.D + c] = sum;
  }
}

// to [D, stride] = left right, [D, depth] by [depth, D]. Barrier after.
template <class T, int kChunks, class Left, class Right>
__device__ __forceinline__ void small_product(const SmallViews<T>& v, int depth, const Left& left,
                                              const Right& right, const SharedArray<T>& to) {
  const Place me = place();
  constexpr int kStep = kTileRows<kChunks>;
  for (int first = kStep * me.warp; first < v.D; first += kStep * me.warps) {
    Tile<T, kChunks> total = {};
    for (int from = 0; from < depth; from += 32) {
      const auto part = warp_product<T, kChunks>(
          v.D, v.D, depth - from < 32 ? depth - from : 32, first,
          [&](int i, int k) { return left(i, from + k); },
          [&](int k, int j) { return right(from + k, j); });
#pragma unroll
      for (int r = 0; r < kStep; ++r) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) total.sum[r][c] += part.sum[r][c];
      }
    }
    store_tile(v.D, v.D, first, total, [&](int i, int j, T sum) { to[i * v.stride + j] = sum; });
  }
  __syncthreads();
}

// second = core = V R V^T from first = cross. Barriers between and after.
template <int kChunks, class T>
__device__ __forceinline__ void small_core(const BackwardMatrixArguments<T>& m, int64_t g,
                                           const SmallViews<T>& v) {
  const int D = v.D, stride = v.stride;
  const T* const outer = m.outer() + g * D * D;
  const auto in_first = [&](int i, int k) { return static_cast<T>(v.first[i * stride + k]); };
  const auto in_second = [&](int i, int k) { return static_cast<T>(v.second[i * stride + k]); };
  const auto outer_t = [&](int i, int k) { return outer[k * D + i]; };
  const auto plain = [&](int i, int k) { return outer[i * D + k]; };
  small_product<T, kChunks>(
      v, D, outer_t,
      [&](int k, int j) {
        const T entry = v.first[k * stride + j];
        return m.gamma != nullptr ? entry * m.gamma[g * D + j] : entry;
      },
      v.second);
  if (m.kind == 0) {
    small_product<T, kChunks>(v, D, in_second, plain, v.first);
  } else {
    for (int e = static_cast<int>(threadIdx.x); e < D * D; e += kSmallThreads) {
      const int at = e / D * stride + e % D;
      v.first[at] = static_cast<T>(v.second[at]);
    }
    __syncthreads();
  }
  for (int e = static_cast<int>(threadIdx.x); e < D * D; e += kSmallThreads) {
    const int i = e / D, j = e % D;
    v.second[i * stride + j] =
        weigh<T>(m, g, i, j, v.first[i * stride + j], v.first[j * stride + i]);
  }
  __syncthreads();
  small_product<T, kChunks>(v, D, plain, in_second, v.first);
  small_product<T, kChunks>(v, D, in_first, outer_t, v.second);
}

// grad_gamma_j = sum_i W_ij cross_ij, from first = cross.
template <class T>
__device__ __forceinline__ void small_grad_gamma(const BackwardMatrixArguments<T>& m, int64_t g,
                                                 const SmallViews<T>& v) {
  const int j = static_cast<int>(threadIdx.x);
  if (j >= v.D) return;
  T sum = 0;
  for (int i = 0; i < v.D; ++i) {
    sum += m.matrix[(g * v.D + i) * v.D + j] * static_cast<T>(v.first[i * v.stride + j]);
  }
  m.grad_gamma[g * v.D + j] = sum;
}

// dx_n = (gamma (g_n - p_n sum g)) W^T - p_n xc_n inner, inner = core shrunk; first = W^T.
template <int kChunks, class In, class T>
__device__ __forceinline__ void small_dx(const SmallBackward<In, T>& in, int64_t g,
                                         const SmallViews<T>& v) {
  const Place me = place();
  const int D = v.D, stride = v.stride;
  constexpr int kStep = kTileRows<kChunks>;
  T trace = 0;
  for (int i = 0; i < D; ++i) trace += v.diagonal[i];
  for (int first = kStep * me.warp; first < v.rows; first += kStep * me.warps) {
    auto tile = warp_product<T, kChunks>(
        v.rows, D, D, first,
        [&](int r, int k) {
          const T entry = static_cast<T>(v.grad[r * stride + k]) -
                          static_cast<T>(v.p[r]) * static_cast<T>(v.sums[k]);
          return in.m.gamma != nullptr ? entry * in.m.gamma[g * D + k] : entry;
        },
        [&](int k, int c) { return static_cast<T>(v.first[k * stride + c]); });
    const auto part = warp_product<T, kChunks>(
        v.rows, D, D, first,
        [&](int r, int k) { return static_cast<T>(v.p[r]) * static_cast<T>(v.x[r * stride + k]); },
        [&](int k, int c) { return shrunk<T>(in.m, g, v.second[k * stride + c], k == c, trace); });
#pragma unroll
    for (int r = 0; r < kStep; ++r) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) tile.sum[r][c] -= part.sum[r][c];
    }
    store_tile(v.rows, D, first, tile, [&](int r, int c, T sum) {
      in.dx[row_offset(in.s, r) + (g * D + c) * in.s.length] = round_to<In>(sum);
    });
  }
}

// One block per group.
template <int kChunks, class In, class T>
__global__ void __launch_bounds__(kSmallThreads, 1) small_backward_kernel(SmallBackward<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int64_t g = blockIdx.x;
  const SmallViews<T> v(arena, static_cast<int>(in.s.rows()), static_cast<int>(in.s.width));
  const int D = v.D, stride = v.stride, thread = static_cast<int>(threadIdx.x);
  load_small(in, g, v);
  small_product<T, kChunks>(
      v, v.rows, [&](int i, int k) { return static_cast<T>(v.x[k * stride + i]); },
      [&](int k, int j) { return static_cast<T>(v.grad[k * stride + j]); }, v.first);
  small_grad_gamma(in.m, g, v);
  small_core<kChunks>(in.m, g, v);
  for (int e = thread; e < D * D; e += kSmallThreads) {  // W^T: read by rows from here on
    v.first[e % D * stride + e / D] = in.m.matrix[g * D * D + e];
  }
  if (thread < D) v.diagonal[thread] = static_cast<T>(v.second[thread * stride + thread]);
  __syncthreads();
  small_dx<kChunks>(in, g, v);
}

// False, and nothing, if the case is not one for this kernel.
template <class Device, class In, class T>
bool run_small_backward(Device& device, const SmallBackward<In, T>& in) {
  const int64_t bytes = small_backward_bytes<T>(in.s.rows(), in.s.width);
  if (!small_shape(in.s, true) || bytes > device.shared_limit()) return false;
  auto* kernel =
      in.s.width <= 32 ? small_backward_kernel<1, In, T> : small_backward_kernel<2, In, T>;
  device.launch(kernel, in.s.groups, kSmallThreads, bytes, in);
  return true;
}

}  // namespace cuda
}  // namespace fastwhiten
