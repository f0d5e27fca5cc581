// The Python module fastwhiten_cpu: importing it registers the schemas of the ops and their
// kernels for the CPU. Builds for the Hugging Face Hub have it under another name, with the CUDA
// kernels in it.
#include <string>

#include "common/library.h"
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
FASTWHITEN_LIBRARY(m) {
  m.def("linear_algebra_provider() -> str");
  m.def("cpu_capability() -> str");
  fastwhiten::ops::define_all(m);
}

FASTWHITEN_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("linear_algebra_provider", TORCH_BOX(&linear_algebra_provider));
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

FASTWHITEN_LIBRARY_IMPL(CPU, m) { fastwhiten::ops::register_all<fastwhiten::cpu::Device>(m); }

FASTWHITEN_MODULE(TORCH_EXTENSION_NAME)
