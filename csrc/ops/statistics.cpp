#include "statistics.h"

namespace fastwhiten {

Layout check_statistics(const Tensor& x, const OptionalTensor& row_weight, int64_t groups,
                        bool double_precision) {
  const Layout s = check_layout("statistics", x, groups);
  check_sizes("statistics", "row_weight", row_weight,
              accumulation_type(x.scalar_type(), double_precision), {s.rows()});
  return s;
}

}  // namespace fastwhiten

#ifndef FASTWHITEN_CHECKS_ONLY  // see cuda/checks.cpp
STABLE_TORCH_LIBRARY_FRAGMENT(fastwhiten, m) {
  m.def(
      "statistics(Tensor x, Tensor? row_weight, int groups, bool double_precision)"
      " -> (Tensor mean, Tensor covariance)");
}
#endif
