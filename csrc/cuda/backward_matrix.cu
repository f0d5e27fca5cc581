#include "backward_matrix.cuh"
#include "device.h"

namespace fastwhiten {
namespace cuda {

template void run_backward_matrix(Device&, const BackwardMatrix<float>&);
template void run_backward_matrix(Device&, const BackwardMatrix<double>&);

}  // namespace cuda
}  // namespace fastwhiten
