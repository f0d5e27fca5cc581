#include "apply.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                      \
  template void run_apply(Device&, const Layout&, const In*, const T*, const T*, const T*, \
                          const T*, In*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
