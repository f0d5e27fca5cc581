// rho [G]. With S' = beta S + (1 - beta) S_running, a = trace(S'), b = |S'|^2, n = 1 / (sum p^2
// beta^2):
//   oas: ((1 - 2/D) b + a^2) / ((n + 1 - 2/D)(b - a^2/D))      (Chen et al. 2010, eq. 23)
//   ledoit-wolf: min(f / n, h) / h, h = b - a^2/D, f = sum_n p_n |xc_n|^4 - |S|^2   (2004,
//   sec. 3.2)
// clamped to [0, 1]; 1 where S' is a multiple of the identity already. Bytes: S' once; x once for
// ledoit-wolf. Determinism: blocks of rows are cut by shape alone and added in order.
#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "stages.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kBlockRows = 256;

// sum_n p_n |x_n - mean|^4 over the rows [r0, r0 + m) of group g.
template <class In, class T>
double fourth_moment(const Layout& s, const In* x, const T* mean, const T* p, int64_t g, int64_t r0,
                     int64_t m) {
  T squares[kBlockRows] = {};
  const int64_t D = s.width;
  for (int64_t i = 0; i < m; ++i) {
    const In* from = x + offset(s, r0 + i, g * D);
    for (int64_t c = 0; c < D; ++c) {
      const T xc = static_cast<T>(from[c * s.length]) - mean[g * D + c];
      squares[i] += xc * xc;
    }
  }
  double sum = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double weight = p == nullptr ? 1.0 / static_cast<double>(s.rows()) : p[r0 + i];
    sum += weight * static_cast<double>(squares[i]) * static_cast<double>(squares[i]);
  }
  return sum;
}

// The formulas of the header; fourth = sum_n p_n |xc_n|^4 (ledoit-wolf only).
template <class T>
double estimate(int64_t D, const T* batch, const T* running, double share, double rows,
                bool ledoit_wolf, double fourth) {
  double trace = 0, square = 0, own = 0;
  for (int64_t i = 0; i < D; ++i) {
    for (int64_t j = 0; j < D; ++j) {
      const double s = batch[i * D + j], old = running == nullptr ? 0 : running[i * D + j];
      const double blended = running == nullptr ? s : share * s + (1 - share) * old;
      if (i == j) trace += blended;
      square += blended * blended;
      own += s * s;
    }
  }
  const double size = static_cast<double>(D), distance = square - trace * trace / size;
  double numerator = (1 - 2 / size) * square + trace * trace;
  double denominator = (rows + 1 - 2 / size) * distance;
  if (ledoit_wolf) {
    const double noise = (fourth - own) / rows;
    numerator = noise > distance ? distance : noise;
    denominator = distance;
  }
  const double ratio = denominator > 0 ? numerator / denominator : 1;
  return ratio < 0 ? 0 : ratio > 1 ? 1 : ratio;
}

}  // namespace

template <class In, class T>
void run_intensity(const Device&, const Intensity<In, T>& args) {
  const int64_t D = args.s.width, M = args.s.rows(), blocks = (M + kBlockRows - 1) / kBlockRows;
  if (args.method == kFixed) {
    std::fill_n(args.rho, args.s.groups, static_cast<T>(args.value));
    return;
  }
  Buffer<double> partial(args.s.groups * blocks);
  if (args.method == kLedoitWolf) {
    parallel(args.s.groups * blocks, 3.0 * static_cast<double>(args.s.numel()),
             [&](int64_t begin, int64_t end) {
               for (int64_t u = begin; u < end; ++u) {
                 const int64_t r0 = u % blocks * kBlockRows;
                 partial[u] = fourth_moment(args.s, args.x, args.mean, args.p, u / blocks, r0,
                                            std::min(kBlockRows, M - r0));
               }
             });
  }
  double squares = 0;
  for (int64_t n = 0; args.p != nullptr && n < M; ++n)
    squares += static_cast<double>(args.p[n]) * args.p[n];
  const double share = args.running == nullptr ? 1 : args.batch_weight;
  const double rows = (args.p == nullptr ? static_cast<double>(M) : 1 / squares) / (share * share);
  for (int64_t g = 0; g < args.s.groups; ++g) {
    double fourth = 0;
    for (int64_t b = 0; args.method == kLedoitWolf && b < blocks; ++b)
      fourth += partial[g * blocks + b];
    const T* old = args.running == nullptr ? nullptr : args.running + g * D * D;
    args.rho[g] = static_cast<T>(estimate(D, args.covariance + g * D * D, old, share, rows,
                                          args.method == kLedoitWolf, fourth));
  }
}

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_intensity(const Device&, const Intensity<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
