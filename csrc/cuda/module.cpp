// The Python module fastwhiten._C_cuda: importing it adds CUDA kernels to the ops of fastwhiten._C.
#include <Python.h>

PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
