#include "device.h"
#include "factor_stage.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(T)                                                           \
  template void run_factor(Device&, int64_t, int64_t, const T*, const T*, double, int64_t,  \
                           const T*, T*, T*, T*);                                           \
  template void run_factor(Device&, int64_t, int64_t, const T*, const T*, const T*, double, \
                           double, int64_t, const T*, T*, T*, T*);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
