// Products of panels through shared memory: C [64, 64] += A^T B, A and B staged as slabs.
//
// A team of threads owns C: 64 threads with 8 x 8 sums each in float, all 256 with 4 x 4 in double.
// In float four teams share the depth of a slab, and are added up at the end, or have columns of
// their own. Registers: 64 sums and 16 factors. Shared memory: slabs [depth, span] of T.
// Bank conflicts: the vectors of four within 32 numbers of a slab change places with its row
// (an exclusive or), so that a quarter of a warp meets in no bank, be it vectors along a row that
// it moves, or single numbers of one column and every fourth row. Neighbouring lanes share a
// vector of A or of B: a warp reads 128 bits a thread in two passes.
// Determinism: rows of a slab in order, teams in a fixed tree.
#pragma once

#include "tiles.cuh"

namespace fastwhiten {
namespace cuda {

// Of four rows, and of four columns, that a thread's sums have.
template <class T>
constexpr int kVectors = sizeof(T) == 4 ? 2 : 1;
template <class T>
constexpr int kTeamThreads = kTile * kTile / (16 * kVectors<T> * kVectors<T>);
template <class T>
constexpr int kTeams = kThreads / kTeamThreads<T>;
template <class T>
constexpr int kTeamDepth = kDepth / kTeams<T>;  // of a slab whose depth the teams share

// Where element (k, i) of a slab lies.
__device__ __forceinline__ int turn(int k) { return k & 28; }
template <int kSpan = kTile>
__device__ __forceinline__ int slab_place(int k, int i) {
  return k * kSpan + (i ^ turn(k));
}

// Every second bit, from the lowest one.
__device__ __forceinline__ int even_bits(int n) {
  return (n & 1) | (n >> 1 & 2) | (n >> 2 & 4) | (n >> 3 & 8);
}

// The row and the column at which a thread begins, in one register, out of which they are taken
// wherever they are needed.
struct Spot {
  int packed;
  __device__ __forceinline__ Spot(int row, int column) : packed(row * 256 + column) {}
  __device__ __forceinline__ int row() const { return opaque(packed) >> 8; }
  __device__ __forceinline__ int column() const { return opaque(packed) & 255; }
};

// What a thread owns of its team's C: rows spot.row() + step(u), columns spot.column() +
// step(w). Neighbours of two lanes differ in the column, of four in the row as well.
template <class T>
struct TeamSums {
  static constexpr int kOwn = 4 * kVectors<T>;
  Spot spot;
  T v[kOwn][kOwn];

  __device__ __forceinline__ TeamSums()
      : spot(4 * even_bits(static_cast<int>(threadIdx.x) % kTeamThreads<T> / 2),
             4 * even_bits(static_cast<int>(threadIdx.x) % kTeamThreads<T>)) {
    clear();
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
#pragma unroll
      for (int w = 0; w < kOwn; ++w) v[u][w] = T(0);
    }
  }
};
template <class T>
__device__ __forceinline__ int step(int u) {
  return u / 4 * (kTile / kVectors<T>)+u % 4;
}

// sums += a^T b over rows [first, first + depth) of two slabs, multiples of four, which begin at
// elements a and b of shared memory, multiples of 64. b has kSpan columns. kLower: what lies above
// the diagonal of C is not wanted. kUnroll: 4, or 2 where registers are not enough for more factors
// at once.
template <bool kLower, int kUnroll, int kSpan = kTile, class T>
__device__ __forceinline__ void multiply(const SharedArray<T>& slabs, int a, int b, int first,
                                         int depth, TeamSums<T>& sums) {
  constexpr int kOwn = TeamSums<T>::kOwn, kNext = kTile / kVectors<T>;
  a += sums.spot.row();
  b += sums.spot.column();
#pragma unroll 1
  for (int k = first; k < first + depth; k += kUnroll) {
    const int from_a = k * kTile + (a ^ turn(k)), from_b = k * kSpan + (b ^ turn(k));
#pragma unroll
    for (int n = 0; n < kUnroll; ++n) {
      Four<T> left[kVectors<T>], right[kVectors<T>];
#pragma unroll
      for (int i = 0; i < kVectors<T>; ++i) {
        left[i] = load4(slabs, from_a + n * kTile + i * kNext);
        right[i] = load4(slabs, from_b + n * kSpan + i * kNext);
      }
#pragma unroll
      for (int u = 0; u < kOwn; ++u) {
#pragma unroll
        for (int w = 0; w < kOwn; ++w) {
          if (kLower && w / 4 > u / 4) continue;
          sums.v[u][w] += left[u / 4].v[u % 4] * right[w / 4].v[w % 4];
        }
      }
    }
  }
}

// Shared memory that `gather` works in: [2, 64, 64] where there are several teams.
template <class T>
constexpr int kGatherElements = kTeams<T> > 1 ? 2 * kTile * kTile : 0;

// f(n, row, column, four sums) for all of C, four columns at a time, the n-th of a thread's
// kGathered, of the sums over all teams. All threads call it; `regions` may be reused after the
// next barrier.
constexpr int kGathered = kTile * kTile / 4 / kThreads;
template <class T, class F>
__device__ __forceinline__ void gather(const SharedArray<T>& regions, const TeamSums<T>& sums,
                                       const F& f) {
  constexpr int kOwn = TeamSums<T>::kOwn, kSquare = kTile * kTile;
  const int row = sums.spot.row(), column = sums.spot.column();
  const auto own_four = [&](int u, int w) {
    return Four<T>{{sums.v[u][w], sums.v[u][w + 1], sums.v[u][w + 2], sums.v[u][w + 3]}};
  };
  if constexpr (kTeams<T> == 1) {
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
#pragma unroll
      for (int w = 0; w < kOwn; w += 4)
        f(u * (kOwn / 4) + w / 4, row + step<T>(u), column + step<T>(w), own_four(u, w));
    }
  } else {
    // Rows four apart, which a quarter of a warp has, lie in different banks.
    const auto place = [](int i, int j) { return i * kTile + (j ^ (i & 4) * 4); };
    const int thread = opaque(static_cast<int>(threadIdx.x));
    const int own = place(row, column) + thread / kTeamThreads<T> % 2 * kSquare;
    __syncthreads();  // what lies in the regions is read
#pragma unroll 1
    for (int round = 0; round < kTeams<T> / 2; ++round) {
      if (thread / kTeamThreads<T> / 2 == round) {
#pragma unroll
        for (int u = 0; u < kOwn; ++u) {
#pragma unroll
          for (int w = 0; w < kOwn; w += 4) {
            const int at = own + step<T>(u) * kTile + step<T>(w);
            store4(regions, at, round > 0 ? own_four(u, w) + load4(regions, at) : own_four(u, w));
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < kGathered; ++n) {
      const int e = 4 * (thread + n * kThreads), at = place(e / kTile, e % kTile);
      f(n, e / kTile, e % kTile, load4(regions, at) + load4(regions, kSquare + at));
    }
  }
}

}  // namespace cuda
}  // namespace fastwhiten
