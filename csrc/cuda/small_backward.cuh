// A whole backward of one group in one block, for few rows: sums -> inner -> dx.
//
// The formulas are those of backward_reduce.cuh, backward_matrix.cuh and backward_apply.cuh. x
// (centred), grad and the eigenvectors are read once and stay in shared memory; the D x D products
// take turns in two arrays there. Sums over rows are made of sums over 32 of them. Bytes: x, grad
// and dx once, the matrices once or twice. Determinism: one order of every sum; a group never sees
// its neighbours. Shared memory: (3 N + 2 M) (N + 4) + M + 7 N numbers, N = 32 or 64: 124 KiB for
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

template <class T, int N>
__host__ __device__ constexpr int64_t small_backward_bytes(int64_t rows) {
  return ((3 * N + 2 * rows) * kRowStride<N> + row_weights(rows) + 7 * N) *
         static_cast<int64_t>(sizeof(T));
}

template <class T, int N>
struct SmallViews {
  static constexpr int kSquare = N * kRowStride<N>;
  __device__ SmallViews(char* arena, int rows_, int width)
      : rows(rows_),
        D(width),
        outer(arena, 0, kSquare),
        first(arena, at(kSquare), kSquare),
        second(arena, at(2 * kSquare), kSquare),
        x(arena, at(3 * kSquare), rows * kRowStride<N>),
        grad(arena, at(3 * kSquare + rows * kRowStride<N>), rows * kRowStride<N>),
        parts(arena, at(3 * kSquare + 2 * rows * kRowStride<N>), 4 * N),
        sums(arena, at(3 * kSquare + 2 * rows * kRowStride<N> + 4 * N), N),
        roots(arena, at(3 * kSquare + 2 * rows * kRowStride<N> + 5 * N), N),
        inverses(arena, at(3 * kSquare + 2 * rows * kRowStride<N> + 6 * N), N),
        p(arena, at(3 * kSquare + 2 * rows * kRowStride<N> + 7 * N), rows) {}
  int rows, D;
  SharedArray<T> outer;          // [N, N + 4] V without its diagonal factor; W in the end
  SharedArray<T> first, second;  // [N, N + 4] products, in turn
  SharedArray<T> x, grad;        // [rows, N + 4]
  SharedArray<T> parts;          // [4, N] sums over a quarter of the rows
  SharedArray<T> sums;           // [N] sums of grad
  SharedArray<T> roots;          // [N] sqrt(l)
  SharedArray<T> inverses;       // [N] 1 / sqrt(l)
  SharedArray<T> p;              // [rows]

 private:
  __device__ static constexpr int64_t at(int numbers) {
    return int64_t{numbers} * static_cast<int64_t>(sizeof(T));
  }
};

// A matrix [D, D] in global memory, zeros around it. No barrier.
template <int N, class T>
__device__ __forceinline__ void load_square(int D, const T* from, const SharedArray<T>& to) {
  fill_rows<N>(to, [&](int i, int j, int) { return i < D && j < D ? from[i * D + j] : T(0); });
}

// The sum of four threads' numbers of a column, in each of them. A barrier inside.
template <class T, int N>
__device__ __forceinline__ T column_sum(const SmallViews<T, N>& v, T part) {
  const int c = static_cast<int>(threadIdx.x) % N, quarter = static_cast<int>(threadIdx.x) / N;
  v.parts[quarter * N + c] = part;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int other = 0; other < 4; ++other) sum += v.parts[other * N + c];
  return sum;
}

// x - mean, grad, weights, the outer factor, roots, sums of grad. Barriers between and after.
template <int N, class In, class T>
__device__ __forceinline__ void load_small(const SmallBackward<In, T>& in, int64_t g,
                                           const SmallViews<T, N>& v) {
  const int D = v.D, thread = static_cast<int>(threadIdx.x), c = thread % N;
  const In* const x = in.x + g * D * in.s.length;
  const In* const grad = in.grad + g * D * in.s.length;
  const T* const mean = in.mean + g * D;
  const T own_mean = c < D ? mean[c] : T(0);  // of rows: a thread has one column
  each_entry<N>(in.s, v.rows, [&](int r, int column, int64_t offset) {
    const int to = r * kRowStride<N> + column;
    const T center = !in.s.planes() ? own_mean : column < D ? mean[column] : T(0);
    v.x[to] = column < D ? convert<T>(x[offset]) - center : T(0);
    v.grad[to] = column < D ? convert<T>(grad[offset]) : T(0);
  });
  for (int r = thread; r < v.rows; r += kBlockThreads<N>) {
    v.p[r] = in.p != nullptr ? in.p[r] : T(1) / static_cast<T>(v.rows);
  }
  load_square<N>(D, in.m.outer() + g * D * D, v.outer);
  if (thread < N) {
    const T root = in.m.kind == 0 && thread < D ? sqrt(in.m.eigenvalues[g * D + thread]) : T(1);
    v.roots[thread] = root;
    v.inverses[thread] = 1 / root;
  }
  __syncthreads();
  T total = 0;
  for (int from = thread / N; from < v.rows; from += 128) {
    const int last = from + 128 < v.rows ? from + 128 : v.rows;
    T sum = 0;
#pragma unroll 8
    for (int r = from; r < last; r += 4) sum += v.grad[r * kRowStride<N> + c];
    total += sum;
  }
  const T sum = column_sum(v, total);
  if (thread >= N) return;
  v.sums[c] = sum;
  if (c < D) in.grad_sum[g * D + c] = sum;
}

// R_ij of backward_matrix.cuh with its factor 1 / (s_i s_j), from both F_ij and F_ji, in `second`
// from `first`. Barrier after.
template <int N, class T>
__device__ __forceinline__ void small_weigh(const BackwardMatrixArguments<T>& m, int64_t g,
                                            const SmallViews<T, N>& v) {
  fill_rows<N>(v.second, [&](int i, int j, int at) {
    const T of_ij = v.first[at], of_ji = v.first[j * kRowStride<N> + i];
    if (m.kind == 0) {
      const T sum = static_cast<T>(v.roots[i]) + static_cast<T>(v.roots[j]);
      return (of_ij + of_ji) / sum *
             (static_cast<T>(v.inverses[i]) * static_cast<T>(v.inverses[j]));
    }
    return i < v.D && j < v.D ? weigh<T>(m, g, i, j, of_ij, of_ji) : T(0);
  });
  __syncthreads();
}

// first = core = V R V^T from first = cross. Barriers between and after.
template <int N, class T>
__device__ __forceinline__ void small_core(const BackwardMatrixArguments<T>& m, int64_t g,
                                           const SmallViews<T, N>& v) {
  using Tile = BlockTile<T, N>;
  {
    Tile tile;  // V^T A
    add_over_rows(tile, v.D, v.outer, v.first);
    if (m.gamma != nullptr) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int j = Tile::column() + w;
        const T gamma = j < v.D ? m.gamma[g * v.D + j] : T(0);
#pragma unroll
        for (int u = 0; u < Tile::kRows; ++u) tile.v[u][w] *= gamma;
      }
    }
    tile.store(v.second);
  }
  __syncthreads();
  if (m.kind == 0) {
    Tile tile;  // (V^T A) U
    add_by_rows(tile, rows_of<N>(v.second), columns_of<N>(v.outer));
    tile.store(v.first);
  } else {
    fill_rows<N>(v.first, [&](int, int, int at) { return static_cast<T>(v.second[at]); });
  }
  __syncthreads();
  small_weigh(m, g, v);
  {
    Tile tile;  // V R
    add_by_rows(tile, rows_of<N>(v.outer), columns_of<N>(v.second));
    tile.store(v.first);
  }
  __syncthreads();
  Tile tile;  // (V R) V^T
  add_transposed(tile, rows_of<N>(v.first), v.outer);
  __syncthreads();
  tile.each_apart([&](int i, int j, T sum) { v.first[i * kRowStride<N> + j] = sum; });
  __syncthreads();
}

// grad_gamma_j = sum_i W_ij cross_ij, from first = cross. A barrier inside.
template <int N, class T>
__device__ __forceinline__ void small_grad_gamma(const BackwardMatrixArguments<T>& m, int64_t g,
                                                 const SmallViews<T, N>& v) {
  const int D = v.D, j = static_cast<int>(threadIdx.x) % N;
  T sum = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) / N; i < D; i += 4) {
    const T w = j < D ? m.matrix[(g * D + i) * D + j] : T(0);
    sum += w * static_cast<T>(v.first[i * kRowStride<N> + j]);
  }
  sum = column_sum(v, sum);
  if (static_cast<int>(threadIdx.x) < D) m.grad_gamma[g * D + j] = sum;
}

// What dx is the sum of two products of: gamma (g_n - p_n sum g) in the place of grad, -p_n xc_n in
// that of x, W in that of V, inner = core shrunk in `second`, from first = core. Barriers between
// and after.
template <int N, class In, class T>
__device__ __forceinline__ void small_factors(const SmallBackward<In, T>& in, int64_t g,
                                              const SmallViews<T, N>& v) {
  const int D = v.D, c = static_cast<int>(threadIdx.x) % N;
  const T gamma = in.m.gamma != nullptr && c < D ? in.m.gamma[g * D + c] : T(1);
  const T sum = v.sums[c];
#pragma unroll 4
  for (int r = static_cast<int>(threadIdx.x) / N; r < v.rows; r += 4) {
    const int at = r * kRowStride<N> + c;
    const T share = v.p[r];
    v.grad[at] = gamma * (static_cast<T>(v.grad[at]) - share * sum);
    v.x[at] = -share * static_cast<T>(v.x[at]);
  }
  if (in.m.outer() != in.m.matrix) load_square<N>(D, in.m.matrix + g * D * D, v.outer);
  const T rho = in.m.rho != nullptr ? in.m.rho[g] : T(0);
  T trace = 0;
  if (rho != T(0)) {
    for (int i = place().lane; i < D; i += 32) trace += v.first[i * kRowStride<N> + i];
    trace = warp_sum(trace);
  }
  fill_rows<N>(v.second, [&](int i, int j, int at) {
    return shrunk<T>(in.m, g, v.first[at], i == j, trace);
  });
  __syncthreads();
}

// dx_n = (gamma (g_n - p_n sum g)) W^T - p_n xc_n inner.
template <int N, class In, class T>
__device__ __forceinline__ void small_dx(const SmallBackward<In, T>& in, int64_t g,
                                         const SmallViews<T, N>& v) {
  using Tile = BlockTile<T, N>;
  In* const dx = in.dx + g * v.D * in.s.length;
  for (int first = 0; first < v.rows; first += N) {
    const auto of = [&](const SharedArray<T>& rows) {
      return [&](int row, int k, auto& to) {
        const int r = first + row < v.rows ? first + row : v.rows - 1;
        load_many(rows, r * kRowStride<N> + k, to);
      };
    };
    Tile tile;
    add_transposed(tile, of(v.grad), v.outer);
    add_transposed(tile, of(v.x), v.second);  // symmetric
    tile.each_apart([&](int row, int c, T sum) {
      const int r = first + row;
      if (r < v.rows && c < v.D) {
        dx[row_offset(in.s, r) + c * in.s.length] = round_to<In>(sum);
      }
    });
  }
}

// One block per group.
template <int N, class In, class T>
__global__ void __launch_bounds__(kBlockThreads<N>, 1)
    small_backward_kernel(SmallBackward<In, T> in) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int64_t g = blockIdx.x;
  const SmallViews<T, N> v(arena, static_cast<int>(in.s.rows()), static_cast<int>(in.s.width));
  load_small(in, g, v);
  product_over_rows<T, N>(v.rows, v.x, v.grad, [](int, T(&)[BlockTile<T, N>::kRows]) {
  }).store(v.first);
  __syncthreads();
  small_grad_gamma(in.m, g, v);
  small_core(in.m, g, v);
  small_factors(in, g, v);
  small_dx(in, g, v);
}

// False, and nothing, if the case is not one for this kernel.
template <class Device, class In, class T>
bool run_small_backward(Device& device, const SmallBackward<In, T>& in) {
  const auto run = [&](auto* kernel, int threads, int64_t bytes) {
    if (!small_shape(in.s, false) || bytes > device.shared_limit()) return false;
    device.launch(kernel, in.s.groups, threads, bytes, in);
    return true;
  };
  const int64_t rows = in.s.rows();
  return in.s.width <= 32 ? run(small_backward_kernel<32, In, T>, kBlockThreads<32>,
                                small_backward_bytes<T, 32>(rows))
                          : run(small_backward_kernel<64, In, T>, kBlockThreads<64>,
                                small_backward_bytes<T, 64>(rows));
}

}  // namespace cuda
}  // namespace fastwhiten
