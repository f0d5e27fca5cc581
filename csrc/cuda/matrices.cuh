// Batched products of matrices: C_g [rows, columns] = sum over k < depth of a_g(k, i) b_g(k, j).
//
// What a, b and the destination are is said by an Op, a struct that the kernel takes by value:
// weights, scales and casts are part of its functions, so that no operand is prepared in memory.
// One block per 64 x 64 tile and chunk of the depth. Bytes: operands once per tile, loaded while
// what is before them is multiplied. Determinism: that of products.cuh; sums over runs of slabs are
// kept apart (backward_reduce.cuh) and added in order, chunks by another kernel. Shared memory: two
// slabs, and what gather needs, 32 KiB.
#pragma once

#include "chunks.cuh"
#include "panels.cuh"

namespace fastwhiten {
namespace cuda {

struct MatrixShape {
  int64_t batch, rows, columns, depth;
  int64_t chunks;  // the depth is cut into so many parts
  bool lower;      // only tiles that touch the lower triangle (rows = columns)
};

__host__ __device__ inline int64_t matrix_tiles(const MatrixShape& m) {
  const int64_t n = ceil_div(m.rows, kTile);
  return m.lower ? n * (n + 1) / 2 : n * ceil_div(m.columns, kTile);
}
inline int64_t matrix_blocks(const MatrixShape& m) { return m.chunks * m.batch * matrix_tiles(m); }

template <class T>
constexpr int kMatrixNumbers = kGatherElements<T> > 2 * kSlab ? kGatherElements<T> : 2 * kSlab;
template <class T>
constexpr int64_t kMatrixSharedBytes = kMatrixNumbers<T> * sizeof(T);

// A thread's part of a slab, which is got before the one before is multiplied. kDepthFirst: who is
// the neighbour in memory of (k, i): (k + 1, i), else (k, i + 1).
template <bool kDepthFirst, class T>
struct MatrixPanel {
  static constexpr int kElements = kSlab / kThreads;
  T v[kElements];

  static __device__ __forceinline__ int row(int e) {
    const int thread = static_cast<int>(threadIdx.x);
    return kDepthFirst ? thread % 8 * 4 + e % 4 : thread / kTile + e * (kThreads / kTile);
  }
  static __device__ __forceinline__ int column(int e) {
    const int thread = static_cast<int>(threadIdx.x);
    return kDepthFirst ? thread / 8 + e / 4 * (kThreads / 8) : thread % kTile;
  }
  // f(k + row, column), 0 from row `last` on.
  template <class F>
  __device__ __forceinline__ void load(int64_t k, int64_t last, const F& f) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      v[e] = k + row(e) < last ? f(k + row(e), column(e)) : T(0);
    }
  }
  __device__ __forceinline__ void store(const SharedArray<T>& slabs, int slab) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) slabs[slab + slab_place(row(e), column(e))] = v[e];
  }
};

// Op: Element, kADepthFirst, kBDepthFirst, shape, a(g, k, i), b(g, k, j), store(chunk, g, i, j,
// sum).
template <class Op>
__global__ void __launch_bounds__(kThreads) matrix_product_kernel(Op op) {
  using T = typename Op::Element;
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> slabs(arena, 0, kMatrixNumbers<T>);
  const MatrixShape m = op.shape;
  const auto tiles = static_cast<unsigned>(matrix_tiles(m));
  const unsigned product = blockIdx.x / tiles, t = blockIdx.x - product * tiles;
  const int64_t g = product % m.batch, chunk = product / m.batch;
  const int64_t across = ceil_div(m.columns, kTile);
  int64_t row = t / across, column = t % across;
  if (m.lower) triangle_position(t, &row, &column);
  row *= kTile;
  column *= kTile;
  const int64_t part = ceil_div(ceil_div(m.depth, kDepth), m.chunks) * kDepth;
  const int64_t first = chunk * part < m.depth ? chunk * part : m.depth;
  const int64_t last = first + part < m.depth ? first + part : m.depth;
  const auto a = [&](int64_t k, int i) { return row + i < m.rows ? op.a(g, k, row + i) : T(0); };
  const auto b = [&](int64_t k, int j) {
    return column + j < m.columns ? op.b(g, k, column + j) : T(0);
  };
  const auto store = [&](int i, int j, T sum) {
    if (row + i >= m.rows || column + j >= m.columns) return;
    if (!m.lower || column + j <= row + i) op.store(chunk, g, row + i, column + j, sum);
  };
  MatrixPanel<Op::kADepthFirst, T> next_a;
  MatrixPanel<Op::kBDepthFirst, T> next_b;
  TeamSums<T> sums;
  Four<T> totals[kGathered] = {};  // of runs of slabs
  const int from = static_cast<int>(threadIdx.x) / kTeamThreads<T> * kTeamDepth<T>;
  next_a.load(first, last, a);
  next_b.load(first, last, b);
  int slab = 0;
  bool done = false;
  for (int64_t k = first; !done; k += kDepth) {
    __syncthreads();  // what was here before is read
    next_a.store(slabs, 0);
    next_b.store(slabs, kSlab);
    __syncthreads();
    done = k + kDepth >= last;
    if (!done) {
      next_a.load(k + kDepth, last, a);
      next_b.load(k + kDepth, last, b);
    }
    multiply<false, 2>(slabs, 0, kSlab, from, kTeamDepth<T>, sums);
    if (++slab < kRunSlabs && !done) continue;
    gather(slabs, sums, [&](int n, int i, int j, const Four<T>& four) {
      totals[n] = totals[n] + four;
      if (!done) return;
#pragma unroll
      for (int u = 0; u < 4; ++u) store(i, j + u, totals[n].v[u]);
    });
    sums.clear();
    slab = 0;
  }
}

}  // namespace cuda
}  // namespace fastwhiten
