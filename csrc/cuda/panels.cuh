// How rows reach the slabs of sums over rows: the depth of a slab are 32 rows, its columns 64
// channels.
//
// A warp loads and stores eight channels of all 32 rows, and so sums over the rows of a slab
// without a barrier. A thread has eight numbers: of planes four rows by two channels, of rows two
// by four, four of them side by side in memory. Bytes: sectors of 32, whole ones where vectors can
// be loaded. No division but at the start.
#pragma once

#include <initializer_list>

#include "products.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int kRunSlabs = kDepth - 1;  // of which a float32 sum is made before it is stored

// What a panel knows of the layout: from a row to that of the next slab.
struct SlabStep {
  static constexpr int64_t kMost = 1 << 30;  // more rows than a block sums
  int64_t length, row;                       // from a channel, and from a row, to the next
  int64_t memory, over;                      // to the next slab, and from a plane to the next
  int rows, plane;                           // passed in the plane, and those of a plane
  explicit SlabStep(const Layout& s)
      : length(s.length),
        row(s.planes() ? 1 : s.channels),
        memory(kDepth / s.length * s.channels * s.length + kDepth % s.length),
        over((s.channels - 1) * s.length),
        rows(static_cast<int>(kDepth % s.length)),
        plane(static_cast<int>(s.length < kMost ? s.length : kMost)) {}
};

template <bool kPlanes, class In>
struct RowPanel {
  static constexpr int kElements = kDepth * kTile / kThreads;
  static constexpr int kRows = kPlanes ? 4 : 2, kChannels = kElements / kRows;
  static constexpr int kFirst = kPlanes ? 1 : 2, kLast = kPlanes ? 8 : 32;  // lanes of a channel

  const In* from;  // the thread's first row and channel
  int left;        // rows from there to the end of the plane
  Spot spot;       // of these in a slab

  // The slab that begins with row r, whose first channel is `channel`.
  __device__ __forceinline__ RowPanel(const In* x, const Layout& s, int64_t r, int64_t channel)
      : spot(first_row(static_cast<int>(threadIdx.x) % 32),
             first_column(static_cast<int>(threadIdx.x))) {
    r += spot.row();
    const int64_t plane = kPlanes ? r / s.length : r, rest = (plane + 1) * s.length - r;
    from = x + plane * s.channels * s.length + (channel + spot.column()) * s.length;
    if (kPlanes) from += s.length - rest;
    left = static_cast<int>(rest < SlabStep::kMost ? rest : SlabStep::kMost);
  }
  static __device__ __forceinline__ int first_row(int lane) {
    return kPlanes ? lane % 8 * 4 : lane / 2 % 4 * 8 + lane / 8;
  }
  static __device__ __forceinline__ int first_column(int thread) {
    return thread / 32 * 8 + (kPlanes ? thread % 32 / 8 : thread % 2 * 4);
  }
  // Of a thread's element e: which of its rows and of its channels.
  static __device__ __forceinline__ int row_of(int e) { return kPlanes ? e % 4 : e / 4; }
  static __device__ __forceinline__ int channel_of(int e) { return kPlanes ? e / 4 : e % 4; }
  // From its first row, or channel, to its n-th in a slab.
  static __device__ __forceinline__ int row_step(int n) { return kPlanes ? n : 4 * n; }
  static __device__ __forceinline__ int column_step(int n) { return kPlanes ? 4 * n : n; }
  // Whether the thread is the first of those that share its channels.
  __device__ __forceinline__ bool leads() const { return spot.row() == 0; }

  __device__ __forceinline__ void advance(const SlabStep& step) {
    from += step.memory;
    if constexpr (kPlanes) {
      left -= step.rows;
      if (left <= 0) {
        left += step.plane;
        from += step.over;
      }
    }
  }

  // The thread's numbers of a slab of `rows` rows and `channels` channels, 0 outside; `beyond`: of
  // as many numbers further in memory. Four at a time, where moves_vectors allows it: copied to
  // words of shared memory of its own, which it waits for and gets from there.
  static constexpr int kWords = kElements * kThreads * sizeof(In) / 4;
  __device__ __forceinline__ void start_load(const SlabStep& step, int64_t beyond, int rows,
                                             int channels,
                                             const SharedArray<uint32_t>& words) const {
    const int own_rows = rows - spot.row(), own_channels = channels - spot.column();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool inside =
          own_rows > row_step(kPlanes ? 0 : half) && own_channels > column_step(kPlanes ? half : 0);
      start_copy4(words, place(half), kApart,
                  from + beyond + 4 * half * (kPlanes ? step.length : step.row), inside);
    }
  }
  __device__ __forceinline__ void finish_load(const SharedArray<uint32_t>& words,
                                              In (&v)[kElements]) const {
    wait_for_copies();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Four<In> four = copied4<In>(words, place(half), kApart);
#pragma unroll
      for (int n = 0; n < 4; ++n) v[4 * half + n] = four.v[n];
    }
  }
  static constexpr int kApart = kThreads * kPartWords<In>;
  static __device__ __forceinline__ int place(int half) {
    return half * kVectorParts<In> * kApart + static_cast<int>(threadIdx.x) * kPartWords<In>;
  }
  // ... one at a time.
  __device__ __forceinline__ void load(const SlabStep& step, int64_t beyond, int rows, int channels,
                                       In (&v)[kElements]) const {
    const int own_rows = rows - spot.row(), own_channels = channels - spot.column();
    const In* at = from + beyond;
    int rest = left;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool inside = own_rows > row_step(kPlanes ? n : half) &&
                            own_channels > column_step(kPlanes ? half : n);
        v[4 * half + n] = inside ? at[4 * half * (kPlanes ? step.length : step.row)] : In{};
      }
      ++at;
      if (kPlanes && --rest == 0) {
        rest = step.plane;
        at += step.over;
      }
    }
  }

  // v = x - what there is to subtract from the slab's columns, from element `first` on.
  template <class T>
  __device__ __forceinline__ void subtract(const In (&x)[kElements], const SharedArray<T>& columns,
                                           int first, T (&v)[kElements]) const {
    T from[kChannels];
#pragma unroll
    for (int n = 0; n < kChannels; ++n) from[n] = columns[first + spot.column() + column_step(n)];
#pragma unroll
    for (int e = 0; e < kElements; ++e) v[e] = convert<T>(x[e]) - from[channel_of(e)];
  }

  template <class T>
  __device__ __forceinline__ void store(const SharedArray<T>& slab, const T (&v)[kElements]) const {
    // Four columns, or rows, further the exclusive or of a place differs in one bit.
    const int first = slab_place(spot.row(), spot.column());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kPlanes) {
#pragma unroll
        for (int n = 0; n < 4; ++n) slab[(first ^ 4 * half) + n * kTile] = v[4 * half + n];
      } else {
        store4(slab, (first ^ 4 * half) + 4 * half * kTile,
               {{v[4 * half], v[4 * half + 1], v[4 * half + 2], v[4 * half + 3]}});
      }
    }
  }

  // The sums over all threads of a channel, in every one of them.
  template <class T>
  __device__ __forceinline__ static void add_lanes(T (&sums)[kChannels]) {
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
#pragma unroll
      for (int lanes = kFirst; lanes < kLast; lanes *= 2) {
        sums[n] += __shfl_xor_sync(0xffffffffu, sums[n], lanes);
      }
    }
  }
};

// Whether four rows of a plane, or four channels of a row, may be moved at once wherever a thread
// does so.
template <class In>
bool moves_vectors(const Layout& s, std::initializer_list<const In*> arrays) {
  const int64_t tile = narrow(s) ? packed_width(s) : s.width;
  bool aligned = s.planes() ? s.length % 4 == 0 : s.channels % 4 == 0 && tile % 4 == 0;
  for (const In* x : arrays) aligned &= reinterpret_cast<uintptr_t>(x) % kVectorBytes<In> == 0;
  return aligned;
}

}  // namespace cuda
}  // namespace fastwhiten
