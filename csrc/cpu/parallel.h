// Who works: the calling thread, a team over units, or BLAS's own team. Decided by the shape alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../common/stable.h"
#include "kernels.h"
#include "linear_algebra.h"

namespace fastwhiten::cpu {

// f(begin, end) over ranges that cover [0, count), by all threads unless a team is at work already.
// Who is free takes the next range, a fair share of half of what is left: cores are not equally
// fast, least of all those that a neighbour uses too.
template <class F>
void share(int64_t count, const F& f) {
  const int64_t team = std::min<int64_t>(torch::stable::get_num_threads(), count);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, team, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.load(); begin < count;) {
      const int64_t end = begin + std::max<int64_t>(1, (count - begin) / (2 * team));
      if (!next.compare_exchange_weak(begin, end)) continue;
      f(begin, end);
      begin = next.load();
    }
  });
}

// Work below this many flops is done by the calling thread: waking a team costs about 5 us here, in
// which one core does 1 MFLOP.
constexpr double kSerialFlops = 3e6;

// f(begin, end) over [0, count), in parallel when the whole work (flops) is worth it.
template <class F>
void parallel(int64_t count, double flops, const F& f) {
  if (count <= 1 || flops < kSerialFlops) {
    SerialLinearAlgebra serial;
    f(int64_t{0}, count);
    return;
  }
  share(count, [&f](int64_t begin, int64_t end) {
    SerialLinearAlgebra serial;
    f(begin, end);
  });
}

// MKL on two threads, against one: 0.95 of the time for D = 64, 0.7 for D = 128, 0.55 for D = 256;
// and a team whose cores are busy elsewhere makes all of its members wait.
constexpr double kTeamFlops = 3e7, kTeamFlopsAlone = 1e7;
constexpr double kMostFlopsOfOneThread = kTeamFlops - 1;

// f(g) for every group. Products of kTeamFlops and more take all threads one after another; smaller
// ones are made by one thread each, groups side by side.
template <class F>
void for_groups(int64_t groups, double flops_of_group, const F& f) {
  if (flops_of_group >= (groups == 1 ? kTeamFlopsAlone : kTeamFlops)) {
    for (int64_t g = 0; g < groups; ++g) f(g);
    return;
  }
  parallel(groups, flops_of_group * static_cast<double>(groups), [&f](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) f(g);
  });
}

// Of how many groups a unit of work is made, where `most` at once take less time than one after
// another: of as many as leave every thread a share.
inline int64_t groups_at_once(int64_t groups, int64_t most) {
  const int64_t team = SerialLinearAlgebra::lives() ? 1 : torch::stable::get_num_threads();
  const int64_t size = std::min(most, (groups + team - 1) / team);
  return size < kLeastAtOnce ? 1 : size;
}

// for_groups, by several groups at once: f(first, count).
template <class F>
void for_groups_at_once(int64_t groups, int64_t most, double flops_of_group, const F& f) {
  if (most == 1) {
    return for_groups(groups, flops_of_group, [&f](int64_t g) { f(g, int64_t{1}); });
  }
  const int64_t size = groups_at_once(groups, most), units = (groups + size - 1) / size;
  parallel(units, flops_of_group * static_cast<double>(groups), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) f(u * size, std::min(size, groups - u * size));
  });
}

// f(begin, end) over the rows of a matrix that a few operations per element go through; shared by
// the team when the matrix is larger than an L1 cache or two.
template <class F>
void for_rows(int64_t rows, int64_t columns, const F& f) {
  constexpr int64_t kSharedFrom = 1 << 15;
  constexpr int64_t kRows = 16;  // per unit of work: a whole number of vectors when transposed
  const int64_t units = (rows + kRows - 1) / kRows;
  if (rows * columns < kSharedFrom) return f(int64_t{0}, rows);
  share(units, [&](int64_t begin, int64_t end) {
    f(begin * kRows, end * kRows < rows ? end * kRows : rows);
  });
}

}  // namespace fastwhiten::cpu
