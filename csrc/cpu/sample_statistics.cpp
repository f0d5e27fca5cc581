// mean [C] = sum_n p_n x_n ; scaled_n = sqrt(p_n) (x_n - mean) ; gram [G, M, M] = scaled_g
// scaled_g^T.
//
// Bytes: x twice (the second time from cache while M * 256 channels fit), scaled once out and once
// in. Determinism: a channel's sum runs over the rows in order, a Gram matrix is one product.
#include "../ops/sample.h"
#include "heaviest.h"
#include "parallel.h"
#include "sample_spectrum.h"
#include "symmetric.h"

namespace fastwhiten::cpu {
namespace {

// Channels [c0, c0 + count): their mean, then their scaled columns. The sums are of differences
// from the row of largest weight, so that they are as accurate as the spread of the data allows.
template <class In, class T>
void scale_channels(int64_t M, int64_t C, const In* x, const T* p, const T* root, int64_t origin,
                    int64_t c0, int64_t count, T* mean, T* scaled) {
  Buffer<T> first(count), sums(count);
  for (int64_t c = 0; c < count; ++c) {
    first[c] = static_cast<T>(x[origin * C + c0 + c]);
    sums[c] = 0;
  }
  const T uniform = T(1) / static_cast<T>(M);
  for (int64_t n = 0; n < M; ++n) {
    const In* from = x + n * C + c0;  // [count]
    const T q = p == nullptr ? uniform : p[n];
    for (int64_t c = 0; c < count; ++c) sums[c] += q * (static_cast<T>(from[c]) - first[c]);
  }
  for (int64_t c = 0; c < count; ++c) mean[c0 + c] = first[c] + sums[c];
  for (int64_t n = 0; n < M; ++n) {
    const In* from = x + n * C + c0;  // [count]
    T* to = scaled + n * C + c0;      // [count]
    for (int64_t c = 0; c < count; ++c) to[c] = root[n] * (static_cast<T>(from[c]) - mean[c0 + c]);
  }
}

template <class In, class T>
void run(const Layout& s, const In* x, const T* p, T* mean, T* scaled, T* gram) {
  const int64_t M = s.samples, C = s.channels, D = s.width;
  Buffer<T> root(M);
  root_weights(M, p, root.get());
  const int64_t origin = heaviest_row(p, 0, M);
  constexpr int64_t kChannels =
      256;  // 1 KiB of every row: whole pages stay mapped, M = 1024 fits the L2
  const double touched = 8.0 * static_cast<double>(s.numel());
  parallel((C + kChannels - 1) / kChannels, touched, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t c0 = b * kChannels;
      scale_channels(M, C, x, p, root.get(), origin, c0, std::min(kChannels, C - c0), mean, scaled);
    }
  });
  for_groups(s.groups, sample_flops(M, D), [&](int64_t g) {
    gemm_symmetric(false, M, D, T(1), scaled + g * D, C, T(0), gram + g * M * M, M);
    mirror(M, gram + g * M * M);
  });
}

std::tuple<Tensor, Tensor, Tensor> sample_statistics(const Tensor& x,
                                                     const OptionalTensor& row_weight,
                                                     int64_t groups, bool double_precision) {
  const Layout s = check_sample_statistics(x, row_weight, groups, double_precision);
  const ScalarType dtype = accumulation_type(x.scalar_type(), double_precision);
  Tensor mean = empty({s.channels}, dtype);
  Tensor scaled = empty({s.samples, s.channels}, dtype);
  Tensor gram = empty({s.groups, s.samples, s.samples}, dtype);
  dispatch(x.scalar_type(), dtype, [&](auto in, auto accumulation) {
    using In = typename decltype(in)::type;
    using T = typename decltype(accumulation)::type;
    if (s.numel() == 0) return fill_nan(mutable_data<T>(mean), mean.numel());
    run(s, data<In>(x), data<T>(row_weight), mutable_data<T>(mean), mutable_data<T>(scaled),
        mutable_data<T>(gram));
  });
  return {mean, scaled, gram};
}

}  // namespace
}  // namespace fastwhiten::cpu

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  m.impl("sample_statistics", TORCH_BOX(&fastwhiten::cpu::sample_statistics));
}
