#include "backward_matrix.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

template void run_backward_matrix(Device&, int64_t, int64_t, const float*, const float*,
                                  const float*, const float*, const float*, const float*, double,
                                  int64_t, float*, float*);
template void run_backward_matrix(Device&, int64_t, int64_t, const double*, const double*,
                                  const double*, const double*, const double*, const double*,
                                  double, int64_t, double*, double*);

}  // namespace cuda
}  // namespace fastwhiten
