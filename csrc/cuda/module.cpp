// The Python module fastwhiten_cuda: importing it adds CUDA kernels to the ops of fastwhiten_cpu.
#include "common/python_module.h"

PyMODINIT_FUNC PyInit_fastwhiten_cuda() { return fastwhiten::python_module("fastwhiten_cuda"); }
