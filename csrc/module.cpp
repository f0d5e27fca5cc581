// The Python module fastwhiten_cpu: importing it registers the ops of namespace fastwhiten.
#include <string>

#include "common/python_module.h"
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

PyMODINIT_FUNC PyInit_fastwhiten_cpu() { return fastwhiten::python_module("fastwhiten_cpu"); }
