// What surrounds one-sided Jacobi in a block: views into shared memory, loading, and the finish.
//
// The finish makes eigenpairs of rows that are almost orthogonal: Rayleigh quotients with the
// original A, one step of refinement (rotations lose orthogonality by a rounding each, and see A
// only through its factor), ascending order, signs made unique.
#pragma once

#include "block_product.cuh"
#include "jacobi.cuh"

namespace fastwhiten {
namespace cuda {

// Up to here; above, 512 threads have 128 registers each, too few for doubles.
template <class T>
constexpr int kBlockUpTo = sizeof(T) == 8 ? 64 : 128;
// Up to here shared memory holds the matrix beside its eigenvectors.
constexpr int kBothUpTo = 64;
constexpr int kScratchRows = 5;
// Steps of a pair that are small: the square, which a first order neglects, is rounding.
template <class T>
constexpr T kSmallStep = sizeof(T) == 8 ? T(9e-10) : T(2.2e-5);  // sqrt(epsilon) / 16

template <class T, int N>
struct EigenShared {
  static constexpr bool kBoth = N <= kBothUpTo;
  static constexpr int kLargest =
      kScratchRows * kReduceWords - 1;  // no sum over a block gets there
  static constexpr int64_t kSquare = int64_t{N} * kRowStride<N> * static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kValues = kScratchRows * kReduceWords * static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kSigns = kValues + N * static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kOrder = kSigns + N * static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kBasis = kOrder + N * 4;
  static constexpr int64_t kMatrix = kBasis + kSquare;
  static constexpr int64_t kBytes = kBoth ? kMatrix + kSquare : kMatrix;

  __device__ EigenShared(char* arena, int order_of_matrix)
      : D(order_of_matrix),
        scratch(arena, 0, kScratchRows * kReduceWords),
        values(arena, kValues, N),
        signs(arena, kSigns, N),
        order(arena, kOrder, N),
        basis(arena, kBasis, N * kRowStride<N>),
        matrix(arena, kBoth ? kMatrix : kBasis, N * kRowStride<N>) {}
  // What values are scaled by. From memory each time: through the sweeps registers are scarce.
  __device__ Scale<T> scale() const { return Scale<T>(scratch[kLargest]); }

  int D;
  SharedArray<T> scratch;  // of sums over the block; the largest entry of A
  SharedArray<T> values;   // [N] in the order of the basis, scaled
  SharedArray<T> signs;    // [N] in the order of the basis
  SharedArray<int> order;  // [N] rows of the basis by ascending value
  SharedArray<T> basis;    // V^T [N, N + 4]: eigenvector k is row k
  SharedArray<T> matrix;   // A [N, N + 4]; where there is no room for both, in the place of V^T
};

// Both triangles of a [D, D], of which the lower one is read, and zeros. No barrier.
template <int N, class T>
__device__ __forceinline__ void load_symmetric(int D, const T* a, const SharedArray<T>& target) {
  const Place me = place();
  for (int i = me.warp; i < N; i += me.warps) {
#pragma unroll
    for (int c = 0; c < N; c += 32) {
      const int j = c + me.lane;
      if (j > i) continue;
      const T entry = i < D ? a[i * D + j] : T(0);
      target[i * kRowStride<N> + j] = entry;
      target[j * kRowStride<N> + i] = entry;
    }
  }
}

// The largest |a_ij|, infinity if one is not finite, in every thread. A barrier inside.
template <int N, class T>
__device__ __forceinline__ T largest_entry(const SharedArray<T>& a, const SharedArray<T>& scratch) {
  const Place me = place();
  T largest = 0;
#pragma unroll 4
  for (int i = me.warp; i < N; i += me.warps) {
#pragma unroll
    for (int c = 0; c < N; c += 32) {
      const T size = finite_magnitude(static_cast<T>(a[i * kRowStride<N> + c + me.lane]));
      largest = size > largest ? size : largest;
    }
  }
  largest = warp_max(largest);
  if (me.lane == 0) scratch[me.warp] = largest;
  __syncthreads();
  for (int w = 0; w < N / 8; ++w) {
    const T other = scratch[w];
    largest = other > largest ? other : largest;
  }
  return largest;
}

// Every entry (i, j) of an array becomes f(i, j, its place), by one thread each. No barrier.
template <int N, class T, class F>
__device__ __forceinline__ void fill_rows(const SharedArray<T>& a, const F& f) {
  const Place me = place();
#pragma unroll(N == 128 ? 1 : 4)
  for (int i = me.warp; i < N; i += me.warps) {
#pragma unroll(N == 128 ? 1 : N / 32)
    for (int c = 0; c < N; c += 32) {
      const int at = i * kRowStride<N> + c + me.lane;
      a[at] = f(i, c + me.lane, at);
    }
  }
}

// True in all threads if start [D, D] is there and orthogonal, which what is not finite never is.
// It passes through the basis. Barriers between and after.
template <class T, int N>
__device__ bool usable_start(const EigenShared<T, N>& s, const T* start) {
  if (start == nullptr) return false;
  fill_rows<N>(s.basis,
               [&](int i, int j, int) { return i < s.D && j < s.D ? start[i * s.D + j] : T(0); });
  __syncthreads();
  BlockTile<T, N> gram;
  add_over_rows(gram, s.D, s.basis, s.basis);
  bool fine = true;
  gram.each([&](int r, int c, T sum) {
    const T defect = r == c && r < s.D ? sum - 1 : sum;
    fine = fine && fabs(defect) <= kStartDefect<T>;
  });
  return __syncthreads_and(fine) != 0;
}

// S = Q^T S Q for the symmetric S in the views' matrix. Barriers between and after.
template <class T, int N>
__device__ void change_basis(const EigenShared<T, N>& s, const T* q) {
  using Tile = BlockTile<T, N>;
  const int D = s.D;
  const auto of_q = [&](int k, int c) { return k < D && c < D ? q[k * D + c] : T(0); };
  {
    Tile product;
    add_by_rows(product, rows_of<N>(s.matrix), [&](int k) {
      Four<T> four;
#pragma unroll
      for (int w = 0; w < 4; ++w) four.v[w] = of_q(k, Tile::column() + w);
      return four;
    });
    __syncthreads();
    product.store(s.matrix);
  }
  __syncthreads();
  Tile product;
  add_product(
      product, D,
      [&](int k, T(&row)[Tile::kRows]) {
#pragma unroll
        for (int u = 0; u < Tile::kRows; ++u) row[u] = of_q(k, Tile::row() + u);
      },
      columns_of<N>(s.matrix));
  __syncthreads();
  product.each([&](int i, int j, T sum) {  // one triangle, so that it is symmetric
    if (j > i) return;
    s.matrix[i * kRowStride<N> + j] = sum;
    s.matrix[j * kRowStride<N> + i] = sum;
  });
  __syncthreads();
}

// Eigenvectors in the basis Q become those of A: row k of V^T = Q times row k. Barriers before and
// between.
template <class T, int N>
__device__ void leave_basis(const EigenShared<T, N>& s, const T* q) {
  using Tile = BlockTile<T, N>;
  const int last = s.D - 1;
  __syncthreads();
  Tile product;  // V = Q rows^T; what is beyond D meets zeros, or is not kept
  add_transposed(
      product,
      [&](int i, int k, auto& to) {
        const T* const row = q + (i < last ? i : last) * s.D;
#pragma unroll
        for (int n = 0; n < 4; ++n) to[n] = row[k + n < last ? k + n : last];
      },
      s.basis);
  __syncthreads();
  product.each_apart(
      [&](int i, int k, T entry) { s.basis[k * kRowStride<N> + i] = i <= last ? entry : T(0); });
}

// A matrix beside the basis: in the views where there is room, else in global memory [D, D].
template <class T, int N>
struct Beside {
  static constexpr bool kBoth = EigenShared<T, N>::kBoth;
  const EigenShared<T, N>& s;
  T* global;
  __device__ __forceinline__ T get(int i, int j) const {
    if constexpr (kBoth) return s.matrix[i * kRowStride<N> + j];
    return i < s.D && j < s.D ? global[i * s.D + j] : T(0);
  }
  __device__ __forceinline__ void set(int i, int j, T value) const {
    if constexpr (kBoth) {
      s.matrix[i * kRowStride<N> + j] = value;
    } else if (i < s.D && j < s.D) {
      global[i * s.D + j] = value;
    }
  }
  // Four of row i from column j on.
  __device__ __forceinline__ Four<T> four(int i, int j) const {
    if constexpr (kBoth) return load4(s.matrix, i * kRowStride<N> + j);
    return {{get(i, j), get(i, j + 1), get(i, j + 2), get(i, j + 3)}};
  }
  __device__ __forceinline__ auto rows() const {
    return [this](int row, int k, auto& to) {
      const Four<T> of_row = four(row, k);
#pragma unroll
      for (int n = 0; n < 4; ++n) to[n] = of_row.v[n];
    };
  }
};

// Squared norms of the basis's rows, of short sums, in the place of the signs: where components are
// equal, a sum of N is off by N roundings. Four threads a row; no barrier.
template <class T, int N>
__device__ __forceinline__ void square_norms(const EigenShared<T, N>& s) {
  const int k = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4;
  T sums[4] = {};
#pragma unroll 2
  for (int c = 4 * part; c < N; c += 16) {
    const Four<T> four = load4(s.basis, k * kRowStride<N> + c);
#pragma unroll
    for (int w = 0; w < 4; ++w) sums[w] += four.v[w] * four.v[w];
  }
  const T sum = warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), 4);
  if (part == 0) s.signs[k] = sum;
}

// Values, and one step that makes rows of the basis orthonormal and eigenvectors at once (Ogita and
// Aishima, Iterative refinement for symmetric eigenvalue decomposition, 2018): with
// S = V^T A V and R = I - V^T V, v_l += sum_k e_kl v_k, e_kl = (s_kl + l_l r_kl) / (l_l - l_k);
// where that is not small, a pair of close values, r_kl / 2. `beside` has A. Barriers before and
// between.
template <class T, int N>
__device__ void refine(const EigenShared<T, N>& s, const Beside<T, N>& beside) {
  using Tile = BlockTile<T, N>;
  __syncthreads();
  square_norms(s);
  {
    Tile product;  // V^T A
    add_by_rows(product, rows_of<N>(s.basis),
                [&](int k) { return beside.four(k, Tile::column()); });
    __syncthreads();
    product.each([&](int k, int c, T sum) { beside.set(k, c, sum); });
  }
  __syncthreads();
  {
    Tile product;  // S
    add_transposed(product, beside.rows(), s.basis);
    __syncthreads();
    product.each_apart([&](int k, int l, T sum) { beside.set(k, l, sum); });
  }
  Tile tile;  // V^T V
  add_transposed(tile, rows_of<N>(s.basis), s.basis);
  tile.each_apart([&](int k, int l, T& sum) {
    if (k != l) return;
    sum = s.signs[k];
    s.values[k] = sum > 0 ? beside.get(k, k) / sum : T(0);
  });
  __syncthreads();
#pragma unroll
  for (int u = 0; u < Tile::kRows; ++u) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int l = Tile::row() + u, k = Tile::apart(w);
      const T r = (k == l ? T(1) : T(0)) - tile.v[u][w];
      // Both triangles decide alike, else V^T V were not I.
      const T of_s = beside.get(k > l ? k : l, k > l ? l : k), mine = s.values[l];
      const T other = s.values[k], gap = mine - other;
      const T of_l = of_s + mine * r, of_k = of_s + other * r, most = kSmallStep<T> * fabs(gap);
      const bool small = gap != T(0) && fabs(of_l) <= most && fabs(of_k) <= most;
      tile.v[u][w] = small ? of_l / gap : r / 2;
    }
  }
  __syncthreads();
  tile.each_apart([&](int l, int k, T e) { beside.set(l, k, e); });
  __syncthreads();
  Tile step;
  add_by_rows(step, beside.rows(), columns_of<N>(s.basis));
  __syncthreads();
  step.each([&](int l, int c, T sum) { s.basis[l * kRowStride<N> + c] += sum; });
}

// The order of the rows by ascending value, and the signs that make the largest component (the
// first of equals) positive. Four threads a row. Barriers before and after.
template <class T, int N>
__device__ void rank_rows(const EigenShared<T, N>& s) {
  const int k = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4;
  // In an order of all numbers: were NaN beside it, two rows could have one rank.
  const auto value_of = [&](int row) {
    const T value = s.values[row];
    return value == value ? value : static_cast<T>(INFINITY);
  };
  __syncthreads();
  const T mine = value_of(k);
  int rank = 0, where = N;
  T largest = -1, pivot = 0;
#pragma unroll 4
  for (int other = part; other < s.D; other += 4) {
    const T value = value_of(other), component = s.basis[k * kRowStride<N> + other];
    rank += value < mine || (value == mine && other < k);
    if (fabs(component) > largest) {
      largest = fabs(component);
      pivot = component;
      where = other;
    }
  }
#pragma unroll
  for (int lanes = 2; lanes > 0; lanes /= 2) {
    rank += __shfl_xor_sync(0xffffffffu, rank, lanes);
    const T component = __shfl_xor_sync(0xffffffffu, pivot, lanes);
    const int row = __shfl_xor_sync(0xffffffffu, where, lanes);
    if (fabs(component) > fabs(pivot) || (fabs(component) == fabs(pivot) && row < where)) {
      pivot = component;
      where = row;
    }
  }
  if (part == 0 && k < s.D) {
    s.order[rank] = k;
    s.signs[k] = pivot < 0 ? T(-1) : T(1);
  }
  __syncthreads();
}

// store(r, c, k, entry): row r of the eigenvector of rank c, which is row k of the basis. No
// barrier.
template <class T, int N, class Store>
__device__ __forceinline__ void each_component(const EigenShared<T, N>& s, const Store& store) {
  const Place me = place();
#pragma unroll
  for (int first = 0; first < N; first += 32) {
    const int c = first + me.lane;
    if (c >= s.D) continue;
    const int k = s.order[c];
    const T sign = s.signs[k];
    for (int r = me.warp; r < s.D; r += me.warps) {
      store(r, c, k, sign * static_cast<T>(s.basis[k * kRowStride<N> + r]));
    }
  }
}

}  // namespace cuda
}  // namespace fastwhiten
