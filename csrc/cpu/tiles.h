// Tiles: what the kernels read an input by. A panel is a short range of rows of one group, copied
// (converted to T, centred, weighted) into a buffer that stays in the L1 cache and is multiplied
// from there; a tile is a run of panels, the unit of parallel work. Rows [M, C] give a panel [m,
// D], planes [N, C, L] a panel [D, m]. Boundaries depend on the shape alone, so results do not
// depend on the thread count.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "symmetric.h"
#include "workspace.h"

namespace fastwhiten::cpu {

// From this width on one product is large enough to be shared by all threads: groups and tiles are
// then taken one after another, and BLAS and the copies are parallel inside.
constexpr int64_t kWideFrom = 256;

struct Plan {
  int64_t tile_rows;   // rows in a tile (the last one may have fewer)
  int64_t tiles;       // tiles per group
  int64_t panel_rows;  // rows in a panel (the whole tile when wide)
  int64_t chunks;      // chunks of consecutive tiles per group: the unit of a reduction
  bool wide;
};

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline Plan make_plan(const Layout& s) {
  // A tile of float32 takes 64 KiB, so that with its copies it stays in the L2 cache: with 256 KiB
  // the (64, 64, 32, 32) map took 10 % longer. And (512, 64) already has work for two threads.
  constexpr int64_t kTileElements = 16384;
  // A wide tile: enough rows that BLAS runs at full speed, in a buffer of 4 MiB or so.
  constexpr int64_t kWideElements = 1 << 20;
  // Thirty-two units keep a many-core machine busy, and their partial sums cost little to add up.
  constexpr int64_t kUnits = 32;
  const int64_t rows = std::max<int64_t>(s.rows(), 1);
  Plan plan;
  plan.wide = s.width >= kWideFrom;
  int64_t tile = plan.wide ? std::max<int64_t>(kWideElements, 64 * s.width) : kTileElements;
  tile = std::clamp<int64_t>(tile / s.width / 64 * 64, 64, 4096);
  if (s.planes() && s.length > tile) {  // equal parts of an image
    const int64_t parts = (s.length + tile - 1) / tile;
    tile = round_up((s.length + parts - 1) / parts, 16);
  } else if (s.planes()) {  // whole images
    tile = tile / s.length * s.length;
  }
  plan.tile_rows = std::min(tile, rows);
  // Panels of rows are short: the product wants them in the L1 cache. Panels of planes are whole
  // tiles: with 64 positions of every channel, memory would be read in pieces of 256 bytes a plane
  // apart, four times slower (no prefetch; every piece in the same cache sets when L is a power of
  // two).
  plan.panel_rows =
      plan.wide || s.planes() ? plan.tile_rows : std::min<int64_t>(64, plan.tile_rows);
  plan.tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
  plan.chunks = plan.wide ? 1 : std::min(plan.tiles, std::max<int64_t>(1, kUnits / s.groups));
  return plan;
}

// unit(g, k) for chunk k of group g, then finish(g) by the thread that did the group's last chunk.
template <class U, class F>
void for_chunks(const Layout& s, const Plan& plan, const U& unit, const F& finish) {
  std::vector<std::atomic<int64_t>> done(s.groups);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t g = u / plan.chunks;
      unit(g, u % plan.chunks);
      if (done[g].fetch_add(1) + 1 == plan.chunks) finish(g);
    }
  };
  const int64_t units = s.groups * plan.chunks;
  if (plan.wide) return run(0, units);
  parallel(units, 2.0 * static_cast<double>(s.numel()) * static_cast<double>(s.width), run);
}

// The row stride of a panel of K channels. Planes: not a multiple of 256 bytes, else the rows of a
// block compete for a few cache sets.
inline int64_t panel_stride(const Layout& s, const Plan& plan, int64_t K) {
  if (!s.planes()) return K;
  const int64_t stride = round_up(plan.panel_rows, 16);
  return stride % 64 == 0 ? stride + 16 : stride;
}
// Its elements; the products read planes up to a vector past a row's end.
inline int64_t panel_size(const Layout& s, const Plan& plan, int64_t K) {
  return (s.planes() ? K : plan.panel_rows) * panel_stride(s, plan, K) + 16;
}

// f(r0, m) for the panels of the tile [first, last).
template <class F>
void for_panels(const Plan& plan, int64_t first, int64_t last, const F& f) {
  for (int64_t r = first; r < last; r += plan.panel_rows) f(r, std::min(plan.panel_rows, last - r));
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

// f(r, m, offset) over pieces of a panel: one piece, or in parallel when it is wide.
template <class F>
void for_pieces(bool wide, int64_t r0, int64_t m, const F& f) {
  constexpr int64_t kPiece = 32;  // rows; with D >= 256 a piece is at least 32 KiB
  if (!wide) return f(r0, m, int64_t{0});
  share((m + kPiece - 1) / kPiece, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, last = std::min(m, end * kPiece);
    f(r0 + first, last - first, first);
  });
}

// buffer = the rows [r0, r0 + m) of group g, shifted; see TileKernels::load.
template <class In, class T>
void load_panel(const Layout& s, const Plan& plan, Scale mode, const In* x, int64_t g, int64_t r0,
                int64_t m, const T* shift, const T* scale, T* buffer, int64_t ld) {
  const auto load = tile_kernels<In, T>().load;
  for_pieces(plan.wide, r0, m, [&](int64_t r, int64_t length, int64_t at) {
    load(s, mode, x, g, r, length, shift, scale, buffer + (s.planes() ? at : at * ld), ld);
  });
}

// Tile unit / G of group unit % G, of x and of y if it is not null: as far as it lies in one image.
// Rows and whole images are long runs, which the hardware sees coming; wide groups are read by all
// threads.
template <class In>
Ahead ahead_of(const Layout& s, const Plan& plan, int64_t unit, const In* x,
               const In* y = nullptr) {
  Ahead ahead{};
  const int64_t r0 = unit / s.groups * plan.tile_rows, within = r0 % s.length;
  const int64_t m = std::min(plan.tile_rows, s.rows() - r0);
  if (plan.wide || (within == 0 && m >= s.length)) return ahead;
  const int64_t size = sizeof(In), first = offset(s, r0, unit % s.groups * s.width);
  ahead.runs = s.width;
  ahead.lines = (std::min(m, s.length - within) * size + 63) / 64;
  ahead.stride = s.length * size;
  ahead.from[0] = reinterpret_cast<const char*>(x + first);
  if (y != nullptr) ahead.from[1] = reinterpret_cast<const char*>(y + first);
  return ahead;
}

}  // namespace fastwhiten::cpu
