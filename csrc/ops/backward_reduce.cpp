#include "backward_reduce.h"

namespace fastwhiten {

Layout check_backward_reduce(const Tensor& x, const Tensor& grad, const Tensor& mean,
                             int64_t groups) {
  const Layout s = check_layout("backward_reduce", x, groups);
  check_same("backward_reduce", "grad", grad, x);
  check_sizes("backward_reduce", "mean", mean, check_accumulation("backward_reduce", mean),
              {s.channels});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "backward_reduce(Tensor x, Tensor grad, Tensor mean, int groups)"
      " -> (Tensor grad_sum, Tensor cross)");
}
#endif
