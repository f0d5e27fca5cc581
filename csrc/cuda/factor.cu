#include "device.h"
#include "factor_stage.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(T)                      \
  template void run_factor(Device&, const Factor<T>&); \
  template void run_factor_blended(Device&, const Factor<T>&);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
