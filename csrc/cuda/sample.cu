#include "device.h"
#include "sample.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                                            \
  template void run_sample_statistics(Device&, const Layout&, const In*, const T*, T*, T*, T*);  \
  template void run_sample_apply(Device&, const Layout&, const T*, const T*, const T*, const T*, \
                                 const T*, double, In*, T*);                                     \
  template void run_sample_backward(Device&, const Layout&, const In*, const T*, const T*,       \
                                    const T*, const T*, const T*, double, In*);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
