// The eigensystem of a larger symmetric matrix by divide and conquer.
#pragma once

#include <cstdint>

namespace fastwhiten::cpu {

// a [n, n] symmetric (full storage) and finite, n > kLargestLeaf -> its eigenvectors as rows,
// values [n] ascending. False when it did not converge: a is as it was. By all threads; no bit
// depends on their number.
template <class T>
bool divide_and_conquer(int64_t n, T* a, T* values);

}  // namespace fastwhiten::cpu
