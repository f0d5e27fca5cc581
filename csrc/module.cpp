// The Python module fastwhiten_cpu: importing it registers the schemas of namespace fastwhiten and
// their kernels for the CPU.
#include <string>

#include "common/python_module.h"
#include "common/stable.h"
#include "cpu/device.h"
#include "cpu/kernels.h"
#include "cpu/linear_algebra.h"
#include "cpu/stages.h"
#include "ops/ops.h"

namespace {

std::string linear_algebra_provider() { return fastwhiten::cpu::linear_algebra_provider(); }
std::string cpu_capability() { return fastwhiten::cpu::cpu_capability(); }

}  // namespace

// The schemas are this module's alone: fastwhiten_cuda adds kernels to them, and PyTorch takes
// kernels before their schema as well as after it.
STABLE_TORCH_LIBRARY(fastwhiten, m) {
  m.def("linear_algebra_provider() -> str");
  m.def("cpu_capability() -> str");
  fastwhiten::ops::define_all(m);
}

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CompositeExplicitAutograd, m) {
  m.impl("linear_algebra_provider", TORCH_BOX(&linear_algebra_provider));
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

STABLE_TORCH_LIBRARY_IMPL(fastwhiten, CPU, m) {
  fastwhiten::ops::register_all<fastwhiten::cpu::Device>(m);
}

PyMODINIT_FUNC PyInit_fastwhiten_cpu() { return fastwhiten::python_module("fastwhiten_cpu"); }
