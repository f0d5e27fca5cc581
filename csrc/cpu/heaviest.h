// The row that weighted sums take differences from.
#pragma once

#include <cstdint>

namespace fastwhiten::cpu {

// The row of [first, first + count) with the largest weight, the first one on ties or without
// weights. Its weight is at least their mean, so that it lies within sqrt(count) standard
// deviations of their mean; a row without weight may lie anywhere.
template <class T>
int64_t heaviest_row(const T* p, int64_t first, int64_t count) {
  int64_t row = first;
  for (int64_t r = first + 1; p != nullptr && r < first + count; ++r) {
    if (p[r] > p[row]) row = r;
  }
  return row;
}

}  // namespace fastwhiten::cpu
