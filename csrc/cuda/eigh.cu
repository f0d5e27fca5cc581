#include "device.h"
#include "eigh.cuh"

namespace fastwhiten {
namespace cuda {

template <class T>
void Device::eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start,
                  int32_t* sweeps) const {
  run_eigh(*this, EighProblem<T>{B, D, a, values, vectors, start, sweeps});
}
template <class T>
bool Device::block_factor(const Factor<T>& blended) const {
  return run_block_factor(*this, blended);
}

template void Device::eigh(int64_t, int64_t, const float*, float*, float*, const float*,
                           int32_t*) const;
template void Device::eigh(int64_t, int64_t, const double*, double*, double*, const double*,
                           int32_t*) const;
template bool Device::block_factor(const Factor<float>&) const;
template bool Device::block_factor(const Factor<double>&) const;

}  // namespace cuda
}  // namespace fastwhiten
