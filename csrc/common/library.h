// STABLE_TORCH_LIBRARY and its kin, in the namespace of this build's ops: "fastwhiten", or what
// FASTWHITEN_NAMESPACE says. fastwhiten/_ops.py has to name the same one.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef FASTWHITEN_NAMESPACE
#define FASTWHITEN_NAMESPACE fastwhiten
#endif

// PyTorch's macros paste their arguments as they stand; what goes through another is expanded.
#define FASTWHITEN_EXPAND(macro, ...) macro(__VA_ARGS__)

#define FASTWHITEN_LIBRARY(m) FASTWHITEN_EXPAND(STABLE_TORCH_LIBRARY, FASTWHITEN_NAMESPACE, m)
#define FASTWHITEN_LIBRARY_FRAGMENT(m) \
  FASTWHITEN_EXPAND(STABLE_TORCH_LIBRARY_FRAGMENT, FASTWHITEN_NAMESPACE, m)
#define FASTWHITEN_LIBRARY_IMPL(key, m) \
  FASTWHITEN_EXPAND(STABLE_TORCH_LIBRARY_IMPL, FASTWHITEN_NAMESPACE, key, m)
