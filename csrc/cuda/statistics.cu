#include "device.h"
#include "statistics.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T) \
  template void run_statistics(Device&, const Statistics<In, T>&);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
