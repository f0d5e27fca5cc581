#include "backward_apply.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_backward_apply(Device&, const BackwardApply<In, T>&);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
