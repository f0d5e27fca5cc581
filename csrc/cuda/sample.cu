#include "device.h"
#include "sample.cuh"

namespace fastwhiten {
namespace cuda {

#define FASTWHITEN_INSTANTIATE(In, T)                                           \
  template void run_sample_statistics(Device&, const SampleStatistics<In, T>&); \
  template void run_sample_apply(Device&, const SampleApply<In, T>&);           \
  template void run_sample_backward(Device&, const SampleBackward<In, T>&);
FASTWHITEN_FOR_DEVICE_TYPES(FASTWHITEN_INSTANTIATE)
#undef FASTWHITEN_INSTANTIATE

}  // namespace cuda
}  // namespace fastwhiten
