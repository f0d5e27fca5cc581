// What tiles of 64 x 64 cover: of products of channels, groups one after another, and of rows.
#pragma once

#include "../common/layout.h"
#include "platform.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

constexpr int kThreads = 256;  // of every kernel built on tiles
constexpr int kTile = 64;      // rows and columns of a tile
constexpr int kDepth = 32;     // of what is multiplied at a time: a slab
constexpr int kSlab = kDepth * kTile;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory offset of (row r, channel 0); channel c lies c * s.length further.
__device__ __forceinline__ int64_t row_offset(const Layout& s, int64_t r) {
  return s.length == 1 ? r * s.channels : r / s.length * s.channels * s.length + r % s.length;
}

// Row and column of entry t of a lower triangle: t = row (row + 1) / 2 + column.
__device__ inline void triangle_position(int64_t t, int64_t* row, int64_t* column) {
  auto r = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  while (r * (r + 1) / 2 > t) --r;  // the root is rounded
  while ((r + 1) * (r + 2) / 2 <= t) ++r;
  *row = r;
  *column = t - r * (r + 1) / 2;
}

__host__ __device__ inline bool narrow(const Layout& s) { return s.width <= kTile / 2; }
__host__ __device__ inline int64_t packed_width(const Layout& s) {  // channels in a shared tile
  return kTile / s.width * s.width;
}

// The channels that one tile of D x D products covers: rows [row, row + rows) by columns [column,
// column + columns), numbered over all groups. Narrow groups share a tile: the products of
// channels of different groups are computed and thrown away, which costs less than empty tiles.
struct ChannelTile {
  int64_t row, column, in_group;  // in_group: the first column, in its group
  int rows, columns;

  // The place of its first product in [G, D, D].
  __device__ __forceinline__ int64_t place(const Layout& s) const {
    return row * s.width + in_group;
  }
};
// Stores products of row i and columns j, ..., j + 3 of a tile of that many rows and columns, those
// whose channels are of one group, or adds to what is there. to: of the tile's first product.
template <class T>
__device__ __forceinline__ void store_products(const Layout& s, int rows, int columns, int i, int j,
                                               const Four<T>& products, bool adds, T* to) {
  const int D = static_cast<int>(s.width);
  if (i >= rows) return;
  to += i * s.width;
  if (columns <= D && D % 4 == 0) {
    if (j < columns) store4(to + j, adds ? products + load4(to + j) : products);
    return;
  }
  const int group = columns > D ? i / D * D : 0;  // its first channel, where several share a tile
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int column = j + n - group;
    if (column < 0 || column >= D || j + n >= columns) continue;
    to[column] = adds ? to[column] + products.v[n] : products.v[n];
  }
}

// How products are cut into tiles, groups one after another.
struct ChannelTiling {
  unsigned count, per_group, across;
  int unit;    // channels of a tile, where a group has one at most
  bool lower;  // only tiles that touch the lower triangle
  ChannelTiling(const Layout& s, bool only_lower)
      : across(static_cast<unsigned>(ceil_div(s.width, kTile))), lower(only_lower) {
    per_group = lower ? across * (across + 1) / 2 : across * across;
    unit = static_cast<int>(narrow(s) ? packed_width(s) : s.width < kTile ? s.width : kTile);
    count = narrow(s) ? static_cast<unsigned>(ceil_div(s.groups * s.width, unit))
                      : static_cast<unsigned>(s.groups) * per_group;
  }
  __device__ __forceinline__ ChannelTile tile(const Layout& s, unsigned t) const {
    if (s.width <= kTile) {
      const int64_t first = int64_t{t} * unit, left = s.groups * s.width - first;
      const int channels = static_cast<int>(left < unit ? left : unit);
      return {first, first, 0, channels, channels};
    }
    const int64_t g = t / per_group;
    int64_t a = t % per_group / across, b = t % per_group % across;
    if (lower) triangle_position(t % per_group, &a, &b);
    const int64_t rows = s.width - a * kTile, columns = s.width - b * kTile;
    return {g * s.width + a * kTile, g * s.width + b * kTile, b * kTile,
            static_cast<int>(rows < kTile ? rows : kTile),
            static_cast<int>(columns < kTile ? columns : kTile)};
  }
};

}  // namespace cuda
}  // namespace fastwhiten
