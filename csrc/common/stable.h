// Aliases of the LibTorch stable ABI, and what it lacks: allocation, typed pointers, dtype
// dispatch.
//
// Notation (the same in every layer): N samples, C channels, G groups, D = C / G, L spatial
// positions, M rows = N * L. T is the accumulation type: float for half, bfloat16 and float inputs,
// double for double inputs or on request. Every tensor that a kernel sees is contiguous.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>

namespace fastwhiten {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

enum Kind : int64_t { kZca = 0, kPca = 1, kCholesky = 2 };
enum Method : int64_t { kNoShrinkage = 0, kFixed = 1, kOas = 2, kLedoitWolf = 3 };

template <class T>
struct Type {
  using type = T;
};

template <class T>
inline constexpr ScalarType scalar_type_of = ScalarType::Undefined;
template <>
inline constexpr ScalarType scalar_type_of<float> = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type_of<double> = ScalarType::Double;

inline ScalarType accumulation_type(ScalarType input, bool double_precision) {
  return input == ScalarType::Double || double_precision ? ScalarType::Double : ScalarType::Float;
}

// Calls f(Type<In>{}, Type<T>{}) for the input dtype and the accumulation dtype at hand.
template <class F>
void dispatch(ScalarType input, ScalarType accumulation, const F& f) {
  const bool wide = accumulation == ScalarType::Double;
  switch (input) {
    case ScalarType::Half:
      return wide ? f(Type<Half>{}, Type<double>{}) : f(Type<Half>{}, Type<float>{});
    case ScalarType::BFloat16:
      return wide ? f(Type<BFloat16>{}, Type<double>{}) : f(Type<BFloat16>{}, Type<float>{});
    case ScalarType::Float:
      return wide ? f(Type<float>{}, Type<double>{}) : f(Type<float>{}, Type<float>{});
    case ScalarType::Double:
      return f(Type<double>{}, Type<double>{});
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64 input");
  }
}

// Calls f(Type<T>{}) with T = float or double.
template <class F>
void dispatch_accumulation(ScalarType accumulation, const F& f) {
  accumulation == ScalarType::Double ? f(Type<double>{}) : f(Type<float>{});
}

// A new uninitialised contiguous tensor. Straight through the C shim: torch::stable::empty boxes
// its arguments for the dispatcher, which costs more than a whole (128, 64) product.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type,
                    int32_t device_index) {
  int64_t strides[4] = {1, 1, 1, 1};
  const auto rank = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(rank <= 4, "empty: expected at most 4 dimensions");
  for (int64_t d = rank - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes.begin()[d + 1];
  const auto code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from<ScalarType>(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.begin(), strides, code, device_type,
                                                  device_index, &handle));
  return Tensor(handle);
}

// The type is given as data<T>(tensor) or by what dispatch() hands over.
template <class T>
const T* data(const Tensor& t, Type<T> = {}) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* data(const OptionalTensor& t, Type<T> = {}) {  // nullptr stands for None
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data(const Tensor& t, Type<T> = {}) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace fastwhiten
