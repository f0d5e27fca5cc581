// The ops on a GPU. The schemas are those that fastwhiten_cpu registers.
#include "../ops/ops.h"
#include "device.h"
#include "fill.cuh"

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CUDA, m) {
  fastwhiten::ops::register_all<fastwhiten::cuda::Device>(m);
}
