// Tiles: what the kernels read an input by. A tile is a range of rows of one group, copied
// (converted to T, centred, weighted) into a buffer that stays in the L2 cache and is handed to
// GEMM from there. Rows [M, C] give a buffer [m, D], planes [N, C, L] a buffer [D, m]: no element
// is transposed. Tile and chunk boundaries depend on the shape alone, so results do not depend on
// the thread count.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/checks.h"
#include "parallel.h"
#include "symmetric.h"

namespace fastwhiten::cpu {

// From this width on one product is large enough to be shared by all threads: groups and tiles are
// then taken one after another, and BLAS and the copies are parallel inside.
constexpr int64_t kWideFrom = 256;
// A tile of float32 takes at most 256 KiB, an eighth of the 2 MiB L2 of current servers and a
// quarter of the 1 MiB of their predecessors: x, g and the result fit together.
constexpr int64_t kTileElements = 65536;

struct Plan {
  int64_t tile_rows;  // rows in a tile (the last one may have fewer)
  int64_t tiles;      // tiles per group
  int64_t chunks;     // chunks of consecutive tiles per group: the unit of parallel work
  bool wide;
};

inline Plan make_plan(const Layout& s) {
  const int64_t rows = std::max<int64_t>(s.rows(), 1);
  Plan plan;
  plan.wide = s.width >= kWideFrom;
  const int64_t largest = plan.wide ? std::max<int64_t>(1 << 20, 64 * s.width) : kTileElements;
  int64_t tile = std::max<int64_t>(64, largest / s.width / 16 * 16);
  if (!plan.wide) tile = std::min<int64_t>(tile, 4096);
  if (s.planes() && s.length < tile) tile = std::max<int64_t>(1, tile / s.length) * s.length;
  if (s.planes() && s.length > tile) {  // equal parts of an image
    const int64_t parts = (s.length + tile - 1) / tile;
    tile = ((s.length + parts - 1) / parts + 15) / 16 * 16;
  }
  plan.tile_rows = std::min(tile, rows);
  plan.tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
  // Sixty-four units keep a many-core machine busy; a partial covariance must stay small against
  // its part.
  const int64_t most = std::max<int64_t>(1, 64 / s.groups);
  plan.chunks = plan.wide ? 1 : std::min(plan.tiles, most);
  return plan;
}

// Calls f(row, length) for the pieces of rows [r0, r0 + m) that lie in one image each.
template <class F>
void for_segments(const Layout& s, int64_t r0, int64_t m, const F& f) {
  for (int64_t r = r0; r < r0 + m;) {
    const int64_t piece = std::min(s.length - r % s.length, r0 + m - r);
    f(r, piece);
    r += piece;
  }
}

// First element of (row r, channel c) in memory.
inline int64_t offset(const Layout& s, int64_t r, int64_t c) {
  if (!s.planes()) return r * s.channels + c;
  return (r / s.length * s.channels + c) * s.length + r % s.length;
}

enum class Scale {
  kNone,    // x - shift
  kResult,  // (x - shift) * scale_n
  kShift,   // x - shift * scale_n
};

// buffer = the tile rows [r0, r0 + m) of group g, shifted. shift [D] (of this group), scale [M] or
// null. rows: buffer [m, D] of row stride ld; planes: buffer [D, m] of row stride ld.
template <Scale kScale, class In, class T>
void load_tile(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
               const T* scale, T* buffer, int64_t ld) {
  const int64_t D = s.width;
  if (!s.planes()) {
    for (int64_t i = 0; i < m; ++i) {
      const In* from = x + offset(s, r0 + i, g * D);  // [D]
      T* to = buffer + i * ld;                        // [D]
      const T q = kScale == Scale::kNone ? T(1) : scale[r0 + i];
      for (int64_t c = 0; c < D; ++c) {
        const T v = static_cast<T>(from[c]);
        if constexpr (kScale == Scale::kNone) to[c] = v - shift[c];
        if constexpr (kScale == Scale::kResult) to[c] = (v - shift[c]) * q;
        if constexpr (kScale == Scale::kShift) to[c] = v - shift[c] * q;
      }
    }
    return;
  }
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    for (int64_t c = 0; c < D; ++c) {
      const In* from = x + offset(s, r, g * D + c);  // [length]
      T* to = buffer + c * ld + (r - r0);            // [length]
      const T* q = kScale == Scale::kNone ? nullptr : scale + r;
      const T b = shift[c];
      for (int64_t l = 0; l < length; ++l) {
        const T v = static_cast<T>(from[l]);
        if constexpr (kScale == Scale::kNone) to[l] = v - b;
        if constexpr (kScale == Scale::kResult) to[l] = (v - b) * q[l];
        if constexpr (kScale == Scale::kShift) to[l] = v - b * q[l];
      }
    }
  });
}

template <class In, class T>
void load_tile(const Layout& s, Scale mode, const In* x, int64_t g, int64_t r0, int64_t m,
               const T* shift, const T* scale, T* buffer, int64_t ld) {
  if (scale == nullptr) mode = Scale::kNone;
  switch (mode) {
    case Scale::kNone:
      return load_tile<Scale::kNone>(s, x, g, r0, m, shift, scale, buffer, ld);
    case Scale::kResult:
      return load_tile<Scale::kResult>(s, x, g, r0, m, shift, scale, buffer, ld);
    case Scale::kShift:
      return load_tile<Scale::kShift>(s, x, g, r0, m, shift, scale, buffer, ld);
  }
}

// f(r, m, column or row offset) over pieces of a tile: one piece, or in parallel when the tile is
// wide.
template <class F>
void for_pieces(bool wide, int64_t r0, int64_t m, const F& f) {
  constexpr int64_t kPiece = 32;  // rows; with D >= 256 a piece is at least 32 KiB
  if (!wide) return f(r0, m, int64_t{0});
  torch::stable::parallel_for(0, (m + kPiece - 1) / kPiece, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, last = std::min(m, end * kPiece);
    f(r0 + first, last - first, first);
  });
}

template <class In, class T>
void load_tile(const Layout& s, const Plan& plan, Scale mode, const In* x, int64_t g, int64_t r0,
               int64_t m, const T* shift, const T* scale, T* buffer, int64_t ld) {
  for_pieces(plan.wide, r0, m, [&](int64_t r, int64_t length, int64_t at) {
    load_tile(s, mode, x, g, r, length, shift, scale, s.planes() ? buffer + at : buffer + at * ld,
              ld);
  });
}

// out = result (+ beta) for the tile rows [r0, r0 + m) of group g: the inverse of load_tile,
// converting. result as a buffer of load_tile; beta [D] of this group, or null.
template <class Out, class T>
void store_tile(const Layout& s, const T* result, int64_t ld, int64_t g, int64_t r0, int64_t m,
                const T* beta, Out* out) {
  const int64_t D = s.width;
  if (!s.planes()) {
    for (int64_t i = 0; i < m; ++i) {
      const T* from = result + i * ld;           // [D]
      Out* to = out + offset(s, r0 + i, g * D);  // [D]
      for (int64_t c = 0; c < D; ++c) {
        to[c] = static_cast<Out>(beta == nullptr ? from[c] : from[c] + beta[c]);
      }
    }
    return;
  }
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    for (int64_t c = 0; c < D; ++c) {
      const T* from = result + c * ld + (r - r0);  // [length]
      Out* to = out + offset(s, r, g * D + c);     // [length]
      const T b = beta == nullptr ? T(0) : beta[c];
      for (int64_t l = 0; l < length; ++l) to[l] = static_cast<Out>(from[l] + b);
    }
  });
}

// sums [D] += sum over the tile of p_n * (x_n - shift), in double per segment; shift [D], p [M] or
// null.
template <class In, class T>
void add_tile_sums(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
                   const T* p, T* sums) {
  const int64_t D = s.width;
  if (!s.planes()) {
    for (int64_t i = 0; i < m; ++i) {
      const In* from = x + offset(s, r0 + i, g * D);  // [D]
      const T q = p == nullptr ? T(1) : p[r0 + i];
      for (int64_t c = 0; c < D; ++c) sums[c] += q * (static_cast<T>(from[c]) - shift[c]);
    }
    return;
  }
  constexpr int kLanes = 16;  // independent partial sums: vectorisable without reassociation
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    for (int64_t c = 0; c < D; ++c) {
      const In* from = x + offset(s, r, g * D + c);  // [length]
      T lanes[kLanes] = {};
      int64_t l = 0;
      for (; l + kLanes <= length; l += kLanes) {
        for (int k = 0; k < kLanes; ++k) {
          const T v = static_cast<T>(from[l + k]) - shift[c];
          lanes[k] += p == nullptr ? v : p[r + l + k] * v;
        }
      }
      for (int k = 0; l < length; ++l, ++k) {
        const T v = static_cast<T>(from[l]) - shift[c];
        lanes[k] += p == nullptr ? v : p[r + l] * v;
      }
      for (int k = kLanes / 2; k > 0; k /= 2) {
        for (int j = 0; j < k; ++j) lanes[j] += lanes[j + k];
      }
      sums[c] += lanes[0];
    }
  });
}

}  // namespace fastwhiten::cpu
