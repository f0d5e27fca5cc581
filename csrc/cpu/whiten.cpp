// The stages of a forward, or of a backward, one after another in one call.
//
// Several groups that each fit the L2 cache are taken whole, one thread a group, or a few whose
// eigenproblems take less time at once, from the first stage to the last: what the next stage reads
// is still in cache, and threads meet once instead of once a stage. Otherwise every stage covers
// all groups before the next one starts. Bytes and determinism: those of the stages; which of the
// two ways is taken depends on the shape alone.
#include "kernels.h"
#include "parallel.h"
#include "stages.h"
#include "symmetric.h"
#include "tiles.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kCachedBytes = 1 << 20;  // half of an L2 cache, for x and grad or y of a group

// Calls f(part, count, g) for groups side by side: part is the layout of one group, f is to do
// count of them from g on, at most `most`; or for all at once, as one part. What is summed up over
// rows is summed up by parts: no bit depends on count, as count does on the number of threads.
template <class T, class F>
void for_each_part(const Layout& s, int64_t most, const F& f) {
  const int64_t bytes = 2 * s.rows() * s.width * static_cast<int64_t>(sizeof(T));
  if (s.groups == 1 || s.width >= kWideFrom || bytes > kCachedBytes) {
    return f(s, int64_t{1}, int64_t{0});
  }
  Layout part = s;  // s.channels stays: it is the row stride
  part.groups = 1;
  // All of them in half of it: with the whole of an L2 cache nothing was gained.
  const int64_t size = groups_at_once(s.groups, std::min(most, kCachedBytes / 2 / bytes));
  const int64_t units = (s.groups + size - 1) / size;
  const double flops = 4.0 * static_cast<double>(s.numel()) * static_cast<double>(s.width);
  parallel(units, flops + kSerialFlops, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      f(part, std::min(size, s.groups - u * size), u * size);
    }
  });
}

template <class T>
const T* at(const T* p, int64_t offset) {
  return p == nullptr ? nullptr : p + offset;
}

}  // namespace

template <class In, class T>
void run_whiten_forward(const Device& device, const WhitenForward<In, T>& in) {
  const int64_t D = in.s.width;
  const bool spectral = in.kind != kCholesky;
  T* const shares = in.method == kNoShrinkage ? nullptr : in.rho;
  const int64_t most = spectral ? eigen_at_once<T>(D) : 1;
  for_each_part<T>(in.s, most, [&](const Layout& part, int64_t count, int64_t first) {
    const int64_t square = D * D;
    for (int64_t g = first; g < first + count; ++g) {
      const In* const x = in.x + offset(in.s, 0, g * D);
      T *const mean = in.mean + g * D, *const covariance = in.covariance + g * square;
      run_statistics(device, Statistics<In, T>{part, x, in.p, mean, covariance});
      if (shares != nullptr) {
        run_intensity(device,
                      Intensity<In, T>{part, x, mean, covariance, at(in.running, g * square), in.p,
                                       in.batch_weight, in.method, in.value, shares + g});
      }
    }
    const int64_t from = first * square;
    run_factor(device,
               Factor<T>{count * part.groups, D, in.covariance + from, at(in.running, from),
                         at<T>(shares, first), in.batch_weight, in.eps, in.kind, at(in.start, from),
                         spectral ? in.eigenvalues + first * D : nullptr,
                         spectral ? in.basis + from : nullptr, in.matrix + from});
    for (int64_t g = first; g < first + count; ++g) {
      const int64_t c = offset(in.s, 0, g * D);
      run_apply(device, Apply<In, T>{part, in.x + c, in.mean + g * D, in.matrix + g * square,
                                     at(in.gamma, g * D), at(in.beta, g * D), in.y + c});
    }
  });
}

template <class In, class T>
void run_whiten_backward(const Device& device, const WhitenBackward<In, T>& in) {
  const int64_t D = in.s.width;
  const bool spectral = in.kind != kCholesky;
  for_each_part<T>(in.s, 1, [&](const Layout& part, int64_t, int64_t g) {
    const int64_t first = offset(in.s, 0, g * D), square = g * D * D;
    const In *const x = in.x + first, *const grad = in.grad + first;
    const T *const mean = in.mean + g * D, *const matrix = in.matrix + square;
    const T* const gamma = at(in.gamma, g * D);
    T* const grad_sum = in.grad_sum + g * D;
    Buffer<T> cross(part.groups * D * D), inner(part.groups * D * D);
    run_backward_reduce(device, BackwardReduce<In, T>{part, x, grad, mean, grad_sum, cross.get()});
    run_backward_matrix(
        device,
        BackwardMatrix<T>{part.groups, D, cross.get(), spectral ? in.eigenvalues + g * D : nullptr,
                          spectral ? in.basis + square : nullptr, matrix, gamma, at(in.rho, g),
                          in.batch_weight, in.kind, inner.get(), in.grad_gamma + g * D});
    run_backward_apply(device, BackwardApply<In, T>{part, x, grad, mean, grad_sum, matrix,
                                                    inner.get(), gamma, in.p, in.dx + first});
  });
}

#define FASTWHITEN_INSTANTIATE(In, T)                                           \
  template void run_whiten_forward(const Device&, const WhitenForward<In, T>&); \
  template void run_whiten_backward(const Device&, const WhitenBackward<In, T>&);
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
