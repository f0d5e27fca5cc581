// The ops on a GPU. The schemas are those that fastwhiten_cpu registers.
#include "../common/library.h"
#include "../ops/ops.h"
#include "device.h"
#include "fill.cuh"

FASTWHITEN_LIBRARY_IMPL(CUDA, m) { fastwhiten::ops::register_all<fastwhiten::cuda::Device>(m); }
