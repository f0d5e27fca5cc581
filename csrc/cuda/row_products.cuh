// Products of rows with matrices: y [rows, channels] = sum over k < D of x(row, k) w(k, channel).
//
// One block per 64 channels and 64 or 256 rows; it walks over D in slabs. What happens to x on the
// way, shifts, weights, scales and casts, is done between memory and slab. In float four teams have
// 64 rows each; where that leaves multiprocessors without a block, they share the depth of a slab
// and 64 rows. Bytes: x once per 64 channels, under way while the slab before is multiplied; the
// matrix once per tile. Determinism: every element is one sum in order, or, of teams that share the
// depth, four in a fixed tree; shape alone decides. Shared memory: a slab of x and two of the
// matrix, what is under way of x, 40 KiB (float), 64 where teams share the depth.
#pragma once

#include "panels.cuh"

namespace fastwhiten {
namespace cuda {

// Rows by channels of the output: where a block works.
struct RowTile {
  int64_t row, channel;  // first ones
  int64_t group;         // of the first channel
  int rows, channels;
};

struct RowTiling {
  unsigned count, down;  // down: of rows
  int rows, unit;        // of a tile; channels of one where a group, or several, have one at most
  RowTiling(const Layout& s, int row_teams) : rows(kTile * row_teams) {
    unit = static_cast<int>(narrow(s) ? packed_width(s) : s.width < kTile ? s.width : kTile);
    down = static_cast<unsigned>(ceil_div(s.rows(), rows));
    count = down * static_cast<unsigned>(narrow(s) ? ceil_div(s.channels, unit)
                                                   : s.groups * ceil_div(s.width, kTile));
  }
  __device__ __forceinline__ RowTile tile(const Layout& s, unsigned t) const {
    const unsigned b = t / down;
    const int64_t row = int64_t{t - b * down} * rows, left = s.rows() - row;
    RowTile at{row, 0, 0, static_cast<int>(left < rows ? left : rows), 0};
    if (s.width <= kTile) {
      at.channel = int64_t{b} * unit;
      at.group = narrow(s) ? at.channel / s.width : b;
      at.channels =
          static_cast<int>(s.channels - at.channel < unit ? s.channels - at.channel : unit);
    } else {
      const auto across = static_cast<unsigned>(ceil_div(s.width, kTile));
      at.group = b / across;
      const int64_t first = (b - static_cast<unsigned>(at.group) * across) * int64_t{kTile};
      at.channel = at.group * s.width + first;
      at.channels = static_cast<int>(s.width - first < kTile ? s.width - first : kTile);
    }
    return at;
  }
};

// Where a row lies.
template <bool kPlanes>
struct RowPlace {
  int64_t offset;  // of its channel 0
  int left = 0;    // rows to the end of its plane
  __device__ __forceinline__ RowPlace(const Layout& s, int64_t row) : offset(row * s.channels) {
    if constexpr (kPlanes) {
      const int64_t plane = row / s.length, rest = (plane + 1) * s.length - row;
      offset = plane * s.channels * s.length + s.length - rest;
      left = static_cast<int>(rest < SlabStep::kMost ? rest : SlabStep::kMost);
    }
  }
  // One row further, of which `left` remain.
  static __device__ __forceinline__ void next(const Layout& s, int64_t& at, int& left) {
    ++at;
    if (kPlanes && --left == 0) {
      left = static_cast<int>(s.length < SlabStep::kMost ? s.length : SlabStep::kMost);
      at += (s.channels - 1) * s.length;
    }
  }
};

constexpr int kTeamSlab = 16;  // rows of a slab that a team multiplies
template <int kRowTeams, class T>
constexpr int kProductDepth = kTeamSlab * kTeams<T> / kRowTeams;  // of a slab

// A thread's part of slabs whose depth are channels: vectors of four rows of a plane, or of four
// channels of a row.
template <bool kPlanes, int kRowTeams, class In, class T>
struct ChannelPanel {
  static constexpr int kSpan = kTile * kRowTeams, kDepthOfSlab = kProductDepth<kRowTeams, T>;
  static constexpr int kVectors = kDepthOfSlab * kSpan / 4 / kThreads, kElements = 4 * kVectors;
  static constexpr bool kWide = kRowTeams > 1;
  static constexpr int kRows = kPlanes ? 4 : kWide ? kVectors : 1, kChannels = kElements / kRows;
  static constexpr int kApart = kThreads * kPartWords<In>;
  static constexpr int kWords = kElements * kThreads * sizeof(In) / 4;

  int64_t offset;  // of the thread's first row and channel
  int left = 0;    // rows to the end of its plane
  Spot spot;       // its first row, and its first channel in a slab

  __device__ __forceinline__ ChannelPanel(const Layout& s, const RowTile& tile)
      : spot(first_row(), first_channel()) {
    const RowPlace<kPlanes> place(s, tile.row + spot.row());
    offset = place.offset + (tile.group * s.width + spot.column()) * s.length;
    left = place.left;
  }
  static __device__ __forceinline__ int first_row() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    if constexpr (kPlanes) return thread % (kSpan / 4) * 4;
    // Single numbers of four channels and these rows lie in different banks of a slab.
    return lane / 4 % 4 + lane / 16 * 16 + (kWide ? 32 * warp : warp % 4 * 4 + warp / 4 * 32);
  }
  static __device__ __forceinline__ int first_channel() {
    const int thread = static_cast<int>(threadIdx.x);
    return kPlanes ? thread / (kSpan / 4) : thread % 4 * 4;
  }
  // Of a thread's element e: which of its rows and of its channels; from the first to the n-th.
  static __device__ __forceinline__ int row_of(int e) {
    return kPlanes ? e % 4 : kWide ? e / 4 : 0;
  }
  static __device__ __forceinline__ int channel_of(int e) {
    return kPlanes ? e / 4 : kWide ? e % 4 : e;
  }
  static __device__ __forceinline__ int row_step(int n) { return kPlanes ? n : 4 * n; }
  static __device__ __forceinline__ int channel_step(int n) {
    return kPlanes ? n * (kThreads / (kSpan / 4)) : n / 4 * 16 + n % 4;
  }

  // The numbers of channels k, k + 1, ... of the group, 0 outside: as in RowPanel.
  __device__ __forceinline__ void start_load(const Layout& s, const RowTile& tile, const In* x,
                                             int k, const SharedArray<uint32_t>& words) const {
    const int channels = static_cast<int>(s.width) - k - spot.column();
    const In* const from = x + offset + k * s.length;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int r = row_step(row_of(4 * j)), c = channel_step(channel_of(4 * j));
      start_copy4(words, place(j), kApart, from + r * s.channels * !kPlanes + c * s.length,
                  spot.row() + r < tile.rows && c < channels);
    }
  }
  static __device__ __forceinline__ int place(int j) {
    return j * kVectorParts<In> * kApart + static_cast<int>(threadIdx.x) * kPartWords<In>;
  }
  // The j-th vector, one number at a time.
  __device__ __forceinline__ Four<In> load(const Layout& s, const RowTile& tile, const In* x, int k,
                                           int j) const {
    const int channels = static_cast<int>(s.width) - k - spot.column();
    const int r = row_step(row_of(4 * j)), c = channel_step(channel_of(4 * j));
    int64_t at = offset + (k + c) * s.length + (kPlanes ? 0 : r * s.channels);
    int rest = left;
    Four<In> four;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const bool inside =
          spot.row() + r + (kPlanes ? n : 0) < tile.rows && c + (kPlanes ? 0 : n) < channels;
      four.v[n] = inside ? x[at] : In{};
      RowPlace<kPlanes>::next(s, at, rest);
    }
    return four;
  }
  __device__ __forceinline__ void store(const SharedArray<T>& slab, int j, const Four<T>& v) const {
    const int r = spot.row() + row_step(row_of(4 * j));
    const int c = spot.column() + channel_step(channel_of(4 * j));
    const int first = slab_place<kSpan>(c, r);
    if constexpr (kPlanes) {
      store4(slab, first, v);
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) slab[first + n * kSpan] = v.v[n];
    }
  }
};

// Starts copying rows k, k + 1, ... of a group's matrix, 0 outside, to a slab: its columns are the
// channels of the tile. It begins at element `slab`. kTransposed: rows are the matrix's columns.
template <int kDepthOfSlab, bool kTransposed, class T>
__device__ __forceinline__ void start_matrix(const Layout& s, const RowTile& tile, const T* matrix,
                                             int k, const SharedArray<T>& slabs, int slab) {
  const int thread = opaque(static_cast<int>(threadIdx.x)), warp = thread / 32, lane = thread % 32;
  // Of a row, threads side by side are; of a column four rows, and as in ChannelPanel.
  const int row = kTransposed ? lane % 4 * 4 : thread / kTile;
  const int column =
      kTransposed ? lane / 4 % 4 + lane / 16 * 16 + warp % 4 * 4 + warp / 4 * 32 : thread % kTile;
  const int D = static_cast<int>(s.width);
  const int rows = column < tile.channels ? D - k - row : 0;
  const int64_t first = tile.channel - tile.group * D + column;  // in the group
  const T* const from = matrix + tile.group * D * D +
                        (kTransposed ? first * D + k + row : int64_t{k + row} * D + first);
#pragma unroll
  for (int n = 0; n < kDepthOfSlab / 4; ++n) {
    const int step = kTransposed ? n / 4 * 16 + n % 4 : 4 * n;
    start_copy(slabs, slab + slab_place(row + step, column), from + (kTransposed ? step : step * D),
               step < rows);
  }
}

// Shared memory of a block.
template <int kRowTeams, class In, class T>
struct ProductShared {
  using Panel = ChannelPanel<true, kRowTeams, In, T>;
  static constexpr int kMatrix = Panel::kDepthOfSlab * kTile,
                       kX = Panel::kDepthOfSlab * Panel::kSpan;
  static constexpr int kNumbers = 2 * kMatrix + kX;
  static constexpr int64_t kBytes = kNumbers * sizeof(T) + Panel::kWords * 4;
  static_assert(kRowTeams > 1 || kGatherElements<T> <= kNumbers, "gather works in the slabs");
  __device__ explicit ProductShared(char* arena)
      : slabs(arena, 0, kNumbers),
        x(arena, 2 * kMatrix * sizeof(T), kX),
        next(arena, kNumbers * sizeof(T), Panel::kWords) {}
  SharedArray<T> slabs, x;     // first of the matrix, two in turn
  SharedArray<uint32_t> next;  // what is under way of x
};

// sums += the product; rows of the sums are channels (kSwapped: rows). It has Terms::kCount terms,
// at most two: rows(n), matrix(n) and kTransposed[n] of the n-th, and numbers<n>(channel)(value,
// p), p being weight(row).
template <bool kPlanes, bool kSwapped, int kRowTeams, class In, class T, class Terms>
struct RowProduct {
  using Panel = ChannelPanel<kPlanes, kRowTeams, In, T>;
  using Shared = ProductShared<kRowTeams, In, T>;
  static constexpr int kDepthOfSlab = Panel::kDepthOfSlab;
  const Terms& terms;
  const Shared& at;
  const RowTile tile;
  const Panel panel;
  T p[Panel::kRows];

  __device__ __forceinline__ RowProduct(const Terms& of, const Shared& shared, const RowTile& where)
      : terms(of), at(shared), tile(where), panel(of.s, where) {
#pragma unroll
    for (int n = 0; n < Panel::kRows; ++n) {
      const int r = panel.spot.row() + Panel::row_step(n);
      p[n] = r < tile.rows ? terms.weight(tile.row + r) : T(0);
    }
  }

  template <int kTerm>
  __device__ __forceinline__ void start_loads(int k, int slab) const {
    if (terms.vectors) panel.start_load(terms.s, tile, terms.rows(kTerm), k, at.next);
    start_matrix<kDepthOfSlab, Terms::kTransposed[kTerm]>(terms.s, tile, terms.matrix(kTerm), k,
                                                          at.slabs, slab % 2 * Shared::kMatrix);
  }
  // Of channels k, ... of the group; beyond the last one anything: the matrix has zeros there.
  template <int kTerm>
  __device__ __forceinline__ void stage(int k) const {
    const int D = static_cast<int>(terms.s.width);
#pragma unroll
    for (int j = 0; j < Panel::kVectors; ++j) {
      Four<In> x;
      if (terms.vectors) {
        x = copied4<In>(at.next, panel.place(j), Panel::kApart);
      } else {
        x = panel.load(terms.s, tile, terms.rows(kTerm), k, j);
      }
      Four<T> v;
#pragma unroll
      for (int m = 0; m < (kPlanes ? 1 : 4); ++m) {
        const int c = k + panel.spot.column() + Panel::channel_step(Panel::channel_of(4 * j + m));
        const auto number = terms.template numbers<kTerm>(tile.group * D + (c < D ? c : 0));
#pragma unroll
        for (int n = m; n < (kPlanes ? 4 : m + 1); ++n) {
          v.v[n] = number(convert<T>(x.v[n]), p[Panel::row_of(4 * j + n)]);
        }
      }
      panel.store(at.x, j, v);
    }
  }

  __device__ __forceinline__ void operator()(TeamSums<T>& sums) const {
    start_loads<0>(0, 0);
    int term = 0, slab = 0, k = 0;
    while (term < Terms::kCount) {
      wait_for_copies();
      __syncthreads();  // the slab before is multiplied, and the matrix is there
      if (Terms::kCount == 1 || term == 0) {
        stage<0>(k);
      } else {
        stage<Terms::kCount - 1>(k);
      }
      const int matrix = slab % 2 * Shared::kMatrix;
      k += kDepthOfSlab;
      ++slab;
      if (k >= static_cast<int>(terms.s.width)) {
        k = 0;
        ++term;
      }
      if (term == 0) {
        start_loads<0>(k, slab);
      } else if (term < Terms::kCount) {
        start_loads<Terms::kCount - 1>(k, slab);
      }
      __syncthreads();
      const int team = static_cast<int>(threadIdx.x) / kTeamThreads<T>, x = 2 * Shared::kMatrix;
      if constexpr (kRowTeams > 1) {
        multiply<false, 2, Panel::kSpan>(at.slabs, matrix, x + team * kTile, 0, kTeamSlab, sums);
      } else {
        multiply<false, 2>(at.slabs, kSwapped ? x : matrix, kSwapped ? matrix : x, team * kTeamSlab,
                           kTeamSlab, sums);
      }
    }
  }
};

// What becomes of a sum: scale * sum + shift, by channel.
template <class T>
struct Affine {
  T scale, shift;
  __device__ __forceinline__ T operator()(T sum) const { return scale * sum + shift; }
};

// Stores four numbers of channel c and rows r, ..., or of row r and channels c, ..., of a tile,
// those that it has. to: the first of them; left: of row r.
template <bool kPlanes, class In>
__device__ __forceinline__ void store_four(const Layout& s, const RowTile& tile, bool vectors,
                                           int left, int r, int c, const Four<In>& four, In* to) {
  if (r >= tile.rows || c >= tile.channels) return;
  if (vectors) {
    store4(to, four);
    return;
  }
  int64_t at = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if ((kPlanes ? r : c) + n < (kPlanes ? tile.rows : tile.channels)) to[at] = four.v[n];
    RowPlace<kPlanes>::next(s, at, left);
  }
}

// The sums of a team's tile, of which rows are channels, stored; `first`: of its rows.
template <bool kPlanes, class T, class Terms>
__device__ __forceinline__ void store_sums(const Layout& s, const RowTile& tile, const Terms& terms,
                                           TeamSums<T>& sums, int first) {
  using In = typename Terms::Input;
  constexpr int kOwn = TeamSums<T>::kOwn;
  const int channel = sums.spot.row();
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    const int c = channel + step<T>(u);
    const Affine<T> finish = terms.finish(tile.channel + (c < tile.channels ? c : 0));
#pragma unroll
    for (int w = 0; w < kOwn; ++w) sums.v[u][w] = finish(sums.v[u][w]);
  }
#pragma unroll 1
  for (int half = 0; half < kVectors<T>; ++half) {  // of the columns
#pragma unroll
    for (int w = 0; w < 4; w += kPlanes ? 4 : 1) {
      const int r = first + sums.spot.column() + half * (kTile / kVectors<T>)+w;
      const RowPlace<kPlanes> place(s, tile.row + r);
      In* const from = terms.to + place.offset + (tile.channel + channel) * s.length;
#pragma unroll
      for (int u = 0; u < kOwn; u += kPlanes ? 1 : 4) {
        Four<In> out;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          out.v[n] = round_to<In>(sums.v[u + (kPlanes ? 0 : n)][w + (kPlanes ? n : 0)]);
        }
        store_four<kPlanes>(s, tile, terms.vectors, place.left, r, channel + step<T>(u), out,
                            from + step<T>(u) * s.length);
      }
    }
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {  // the other half comes to its place
#pragma unroll
      for (int w = 0; w < 4; ++w) sums.v[u][w] = sums.v[u][kOwn - 4 + w];
    }
  }
}

// The tile of the block, for the loop and, again, for what comes after it: less registers.
template <class Terms>
__device__ __forceinline__ RowTile row_tile(const Terms& terms) {
  return terms.tiling.tile(terms.s, static_cast<unsigned>(opaque(static_cast<int>(blockIdx.x))));
}

// A tile of the product.
template <bool kPlanes, int kRowTeams, class In, class T, class Terms>
__device__ __forceinline__ void store_product(const ProductShared<kRowTeams, In, T>& at,
                                              const Terms& terms) {
  TeamSums<T> sums;
  Layout s = terms.s;
  // Where teams share rows, threads get columns of the sums four at a time: rows of a plane, or
  // channels of a row.
  constexpr bool kShared = kRowTeams == 1 && kTeams<T> > 1;
  RowProduct<kPlanes, kShared && !kPlanes, kRowTeams, In, T, Terms>(terms, at,
                                                                    row_tile(terms))(sums);
  s.length = opaque(s.length);
  const RowTile tile = row_tile(terms);
  if constexpr (kShared) {
    gather(at.slabs, sums, [&](int, int i, int j, const Four<T>& four) {
      const int r = kPlanes ? j : i, c = kPlanes ? i : j;
      Four<In> out;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int channel = c + (kPlanes ? 0 : n);
        const auto finish = terms.finish(tile.channel + (channel < tile.channels ? channel : 0));
        out.v[n] = round_to<In>(finish(four.v[n]));
      }
      const RowPlace<kPlanes> place(s, tile.row + r);
      store_four<kPlanes>(s, tile, terms.vectors, place.left, r, c, out,
                          terms.to + place.offset + (tile.channel + c) * s.length);
    });
  } else {
    const int team = static_cast<int>(threadIdx.x) / kTeamThreads<T>;
    store_sums<kPlanes>(s, tile, terms, sums, team * kTile);
  }
}

// Teams that have rows of their own: all, where enough blocks remain.
constexpr unsigned kEnoughBlocks = 128;  // one for every multiprocessor but a few
#ifdef FASTWHITEN_EMULATE
inline unsigned enough_blocks = kEnoughBlocks;  // tests ask for few: large tiles of few rows
#else
constexpr unsigned enough_blocks = kEnoughBlocks;
#endif
template <class T>
int row_teams(const Layout& s) {
  return RowTiling(s, kTeams<T>).count >= enough_blocks ? kTeams<T> : 1;
}

}  // namespace cuda
}  // namespace fastwhiten
