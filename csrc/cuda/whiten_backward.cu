#include "device.h"
#include "whiten.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_whiten_backward(Device&, const WhitenBackward<In, T>&);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
