// What both Python modules are: a name, and "build", how the module was built, as JSON. They define
// nothing else for Python, so the limited API is all that they need.
#pragma once

#include <Python.h>

#include "fastwhiten_build.h"  // FASTWHITEN_BUILD, a string; setup.py writes it for every build

namespace fastwhiten {

inline PyObject* python_module(const char* name) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "build", FASTWHITEN_BUILD) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}

}  // namespace fastwhiten

// The name may be a macro: TORCH_EXTENSION_NAME, which whoever builds an extension defines.
#define FASTWHITEN_MODULE(name) FASTWHITEN_NAMED_MODULE(name)
#define FASTWHITEN_NAMED_MODULE(name) \
  PyMODINIT_FUNC PyInit_##name() { return fastwhiten::python_module(#name); }
