// What stands for the library's eigensolver: cyclic two-sided Jacobi by the host, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace emulation {

// values [D] ascending, vectors [D, D] in columns, of a [D, D], whose lower triangle is read.
template <class T>
void host_eigh(int64_t D, const T* a, T* values, T* vectors) {
  const auto n = static_cast<std::size_t>(D);
  std::vector<double> s(n * n), v(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) s[i * n + j] = s[j * n + i] = double(a[i * n + j]);
    v[i * n + i] = 1;
  }
  bool rotated = true;
  for (int sweep = 0; rotated && sweep < 50; ++sweep) {
    rotated = false;
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t q = p + 1; q < n; ++q) {
        const double pq = s[p * n + q], pp = s[p * n + p], qq = s[q * n + q];
        if (!(std::fabs(pq) > 1e-16 * std::sqrt(std::fabs(pp * qq)) && std::fabs(pq) > 1e-300)) {
          continue;
        }
        rotated = true;
        const double ratio = (qq - pp) / (2 * pq);
        const double tangent = std::copysign(1 / (std::fabs(ratio) + std::hypot(ratio, 1)), ratio);
        const double cosine = 1 / std::hypot(tangent, 1), sine = tangent * cosine;
        const auto turn = [&](double& x, double& y) {
          const double before = x;
          x = cosine * before - sine * y;
          y = sine * before + cosine * y;
        };
        for (std::size_t k = 0; k < n; ++k) turn(s[k * n + p], s[k * n + q]);
        for (std::size_t k = 0; k < n; ++k) turn(s[p * n + k], s[q * n + k]);
        for (std::size_t k = 0; k < n; ++k) turn(v[k * n + p], v[k * n + q]);
      }
    }
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t i, std::size_t j) { return s[i * n + i] < s[j * n + j]; });
  for (std::size_t c = 0; c < n; ++c) {
    values[c] = static_cast<T>(s[order[c] * n + order[c]]);
    for (std::size_t i = 0; i < n; ++i) vectors[i * n + c] = static_cast<T>(v[i * n + order[c]]);
  }
}

}  // namespace emulation
