// The Python module fastwhiten._C: importing it registers the ops of namespace fastwhiten. It
// defines nothing for Python itself, so the limited API is all that it needs.
#include <Python.h>

#include <string>

#include "common/stable.h"
#include "cpu/kernels.h"
#include "cpu/linear_algebra.h"

namespace {

std::string linear_algebra_provider() { return fastwhiten::cpu::linear_algebra_provider(); }
std::string cpu_capability() { return fastwhiten::cpu::cpu_capability(); }

}  // namespace

STABLE_TORCH_LIBRARY(fastwhiten, m) {
  m.def("linear_algebra_provider() -> str");
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CompositeExplicitAutograd, m) {
  m.impl("linear_algebra_provider", TORCH_BOX(&linear_algebra_provider));
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
