// Batched products of matrices: C_g [rows, columns] = sum over k < depth of a_g(k, i) b_g(k, j).
//
// What a, b and the destination are is said by an Op, a struct that the kernel takes by value:
// weights, scales and casts are part of its functions, so that no operand is prepared in memory.
// One block per 64 x 64 tile and chunk of the depth. Bytes: operands once per tile. Determinism:
// every element is one sum in order; chunks are added in order by another kernel.
// Shared memory: two slabs, 17 KiB (float).
#pragma once

#include "chunks.cuh"
#include "tiles.cuh"

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
constexpr int64_t kMatrixSharedBytes = 2 * kSlab * sizeof(T);

// Op: Element, kADepthFirst, kBDepthFirst, shape, a(g, k, i), b(g, k, j), store(chunk, g, i, j,
// sum).
template <class Op>
__global__ void __launch_bounds__(kThreads) matrix_product_kernel(Op op) {
  using T = typename Op::Element;
  FASTWHITEN_SHARED_MEMORY(arena);
  const SharedArray<T> slab_a(arena, 0, kSlab), slab_b(arena, kSlab * sizeof(T), kSlab);
  const MatrixShape m = op.shape;
  const int64_t tiles = matrix_tiles(m), t = blockIdx.x % tiles;
  const int64_t g = blockIdx.x / tiles % m.batch, chunk = blockIdx.x / tiles / m.batch;
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
  Sums<T> sums;
  product(slab_a, slab_b, first, last, Op::kADepthFirst, a, Op::kBDepthFirst, b, sums);
  sums.each([&](int i, int j, T sum) {
    if (row + i < m.rows && column + j < m.columns && (!m.lower || column + j <= row + i)) {
      op.store(chunk, g, row + i, column + j, sum);
    }
  });
}

}  // namespace cuda
}  // namespace fastwhiten
