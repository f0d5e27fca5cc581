// mean [C] = sum_n p_n x_n ; covariance [G, D, D] = sum_n p_n (x_n - mean) (x_n - mean)^T.
//
// By tiles t of total weight P_t and mean m_t: covariance = sum_t [ sum_{n in t} p_n (x_n -
// m_t)(..)^T
// + P_t (m_t - mean)(m_t - mean)^T ]. Every product is of centred numbers, so |mean| >> std costs
// nothing. Bytes: x once from memory, a second time from cache (the tile's mean, then its product).
// Determinism: tiles are added in order within a chunk, chunks in order at the end; no atomics.
#include <cmath>

#include "heaviest.h"
#include "product.h"
#include "stages.h"

namespace fastwhiten::cpu {
namespace {

// tile_mean [D] in double. The sums are of differences from one of the tile's rows, hence as
// accurate as the spread of the data allows, and not as its mean does: from the row of largest
// weight, as one without may lie anywhere.
template <class In, class T>
void tile_mean(const Layout& s, bool wide, const In* x, const T* p, int64_t g, int64_t r0,
               int64_t m, double weight, double* mean) {
  const int64_t D = s.width;
  const auto add = tile_kernels<In, T>().add_sums;
  Buffer<T> first(D), sums(D);
  const int64_t origin = heaviest_row(p, r0, m);
  for (int64_t c = 0; c < D; ++c) {
    first[c] = static_cast<T>(x[offset(s, origin, g * D + c)]);
    sums[c] = 0;
  }
  if (wide) {
    constexpr int64_t kChannels = 64;  // per unit of work: four cache lines of every row
    share((D + kChannels - 1) / kChannels, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t c = b * kChannels;
        Layout part = s;  // the same memory, as one group of these channels that starts at g D + c
        part.width = std::min(kChannels, D - c);
        const In* from = x + offset(s, 0, g * D + c);
        add(part, from, 0, r0, m, first.get() + c, p, sums.get() + c);
      }
    });
  } else {
    add(s, x, g, r0, m, first.get(), p, sums.get());
  }
  const double scale = weight > 0 ? 1 / weight : 0;  // a tile without weight: any mean serves
  for (int64_t c = 0; c < D; ++c) mean[c] = static_cast<double>(first[c]) + scale * sums[c];
}

// covariance [D, D] = sum over chunks of partial [chunks, D, D] (of one: already there), scaled, +
// between-tile term; mirrored.
template <class T>
void combine(const Plan& plan, int64_t D, const double* tile_means, const double* tile_weights,
             const T* partial, double scale, T* mean, T* covariance) {
  Buffer<double> center(D);
  double total = 0;
  for (int64_t t = 0; t < plan.tiles; ++t) total += tile_weights[t];
  for (int64_t c = 0; c < D; ++c) {
    double sum = 0;
    for (int64_t t = 0; t < plan.tiles; ++t) {
      sum += tile_weights[t] / total * (tile_means[t * D + c] - tile_means[c]);
    }
    center[c] = tile_means[c] + sum;
    mean[c] = static_cast<T>(center[c]);
  }
  if (plan.chunks > 1) {
    std::copy_n(partial, D * D, covariance);
    product_kernels<T>().add_rows(plan.chunks - 1, D * D, partial + D * D, D * D, covariance);
  }
  for_rows(D, D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j <= i; ++j) covariance[i * D + j] *= static_cast<T>(scale);
    }
  });
  if (plan.tiles > 1) {
    Buffer<T> deviation(plan.tiles * D);  // [tiles, D]
    for (int64_t t = 0; t < plan.tiles; ++t) {
      const double root = std::sqrt(scale * tile_weights[t]);
      for (int64_t c = 0; c < D; ++c) {
        deviation[t * D + c] = static_cast<T>(root * (tile_means[t * D + c] - center[c]));
      }
    }
    gemm_symmetric(true, D, plan.tiles, T(1), deviation.get(), D, T(1), covariance, D);
  }
  mirror(D, covariance);
}

// The partial covariance [D, D] of the tiles [first, last) of group g, and their means [tiles, D].
// Narrow panels are rows, of planes too: the inner kernels want channels contiguous.
template <class In, class T>
void reduce_chunk(const Layout& s, const Plan& plan, const In* x, const T* p, const T* root,
                  int64_t g, int64_t first, int64_t last, const double* tile_weights,
                  double* tile_means, T* partial) {
  const int64_t D = s.width, K = padded<T>(D);
  const int64_t ld = plan.wide ? panel_stride(s, plan, K) : K;
  const int64_t size = plan.wide ? panel_size(s, plan, K) : plan.panel_rows * K;
  Buffer<T> shift(D), panel(size);
  std::fill_n(panel.get(), plan.wide ? 0 : size, T(0));  // the padding is read
  for (int64_t t = first; t < last; ++t) {
    const int64_t r0 = t * plan.tile_rows, r1 = std::min(r0 + plan.tile_rows, s.rows());
    tile_mean(s, plan.wide, x, p, g, r0, r1 - r0, tile_weights[t], tile_means + t * D);
    for (int64_t c = 0; c < D; ++c) shift[c] = static_cast<T>(tile_means[t * D + c]);
    Ahead ahead = t + 1 < last ? ahead_of(s, plan, (t + 1) * s.groups + g, x) : Ahead{};
    for_panels(plan, r0, r1, [&](int64_t r, int64_t m) {
      const bool add = t > first || r > r0;
      if (!plan.wide) {
        tile_kernels<In, T>().load_rows(s, x, g, r, m, shift.get(), root, panel.get(), ld);
      } else {
        load_panel(s, plan, Scale::kResult, x, g, r, m, shift.get(), root, panel.get(), ld);
      }
      if (plan.wide && s.planes()) {
        gemm_symmetric(false, D, m, T(1), panel.get(), ld, add ? T(1) : T(0), partial, D);
      } else {
        add_rows_product(plan.wide, D, m, panel.get(), ld, panel.get(), ld, partial, add, true,
                         ahead);
      }
    });
  }
}

}  // namespace

template <class In, class T>
void run_statistics(const Device&, const Statistics<In, T>& args) {
  const Plan plan = make_plan(args.s);
  const int64_t D = args.s.width, M = args.s.rows(), G = args.s.groups;
  Buffer<double> tile_weights(plan.tiles), tile_means(G * plan.tiles * D);
  Buffer<T> root(args.p == nullptr ? 0 : M),
      partial(plan.chunks == 1 ? 0 : G * plan.chunks * D * D);
  T* products = plan.chunks == 1 ? args.covariance : partial.get();  // [G, chunks, D, D]
  for (int64_t t = 0; t < plan.tiles; ++t) {
    const int64_t r0 = t * plan.tile_rows, m = std::min(plan.tile_rows, M - r0);
    tile_weights[t] = args.p == nullptr ? static_cast<double>(m) : 0;
    for (int64_t r = r0; args.p != nullptr && r < r0 + m; ++r) {
      tile_weights[t] += args.p[r];
      root[r] = std::sqrt(args.p[r]);
    }
  }
  const double scale = args.p == nullptr ? 1 / static_cast<double>(M) : 1;
  const auto unit = [&](int64_t g, int64_t k) {
    reduce_chunk(args.s, plan, args.x, args.p, args.p == nullptr ? nullptr : root.get(), g,
                 k * plan.tiles / plan.chunks, (k + 1) * plan.tiles / plan.chunks,
                 tile_weights.get(), tile_means.get() + g * plan.tiles * D,
                 products + (g * plan.chunks + k) * D * D);
  };
  const auto finish = [&](int64_t g) {
    combine(plan, D, tile_means.get() + g * plan.tiles * D, tile_weights.get(),
            products + g * plan.chunks * D * D, scale, args.mean + g * D,
            args.covariance + g * D * D);
  };
  for_chunks(args.s, plan, unit, finish);
}

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_statistics(const Device&, const Statistics<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
