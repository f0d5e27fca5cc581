// The Python module fastwhiten_cuda: importing it adds CUDA kernels to the ops of fastwhiten_cpu.
#include "common/python_module.h"

FASTWHITEN_MODULE(TORCH_EXTENSION_NAME)
