// The Device of stages.h and ops.h: the CUDA stream that PyTorch works on. Launches, scratch
// memory, checks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <initializer_list>
#include <type_traits>

#include "../common/stable.h"
#include "platform.cuh"
#include "stages.h"

namespace fastwhiten {
namespace cuda {

// Every tensor lies on the device of the first one: the pointers of another would be read on it.
inline void check_device(const char* op, const Tensor& x, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), op,
                  ": expected all tensors on one CUDA device");
}
inline void check_device(const char* op, const Tensor& x, const OptionalTensor& t) {
  if (t.has_value()) check_device(op, x, *t);
}
template <class... Tensors>
int32_t common_device(const char* op, const Tensor& x, const Tensors&... others) {
  check_device(op, x, x);
  (check_device(op, x, others), ...);
  return x.get_device_index();
}

// Scratch memory of PyTorch's allocator: given back at scope end, to be used again by the same
// stream, hence after the kernels that use it now.
template <class P>
class Scratch {
 public:
  Scratch(int64_t count, int32_t index)
      : tensor_(empty({count * static_cast<int64_t>(sizeof(P))}, ScalarType::Byte,
                      aoti_torch_device_type_cuda(), index)) {}
  P* get() const { return static_cast<P*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

// While it lives, its thread may allocate device memory though a CUDA graph is being captured.
class CaptureRelaxed {
 public:
  CaptureRelaxed() { exchange(); }
  ~CaptureRelaxed() { exchange(); }
  CaptureRelaxed(const CaptureRelaxed&) = delete;
  CaptureRelaxed& operator=(const CaptureRelaxed&) = delete;

 private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class Device {
 public:
  // The half types of torch's headers and of CUDA's have the same bits.
  template <class In>
  using Element = std::conditional_t<
      std::is_same_v<In, torch::headeronly::Half>, __half,
      std::conditional_t<std::is_same_v<In, torch::headeronly::BFloat16>, __nv_bfloat16, In>>;
  using CaptureRelaxed = cuda::CaptureRelaxed;
  static constexpr bool kIterates = true;

  // The device of these tensors and its current stream. It stays current while this lives.
  template <class... Tensors>
  explicit Device(const char* op, const Tensors&... tensors)
      : index_(common_device(op, tensors...)), guard_(index_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  int32_t index() const { return index_; }
  void* stream() const { return stream_; }

  template <class P>
  Scratch<P> allocate(int64_t count) const {
    return Scratch<P>(count, index_);
  }
  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    return fastwhiten::empty(sizes, dtype, aoti_torch_device_type_cuda(), index_);
  }

  // Shared memory that a block may ask for.
  int64_t shared_limit() const {
    int bytes = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_));
    return bytes;
  }

  template <class... Parameters, class... Values>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
              const Values&... values) const {
    constexpr int64_t kDefaultShared = 48 << 10;  // more is to be asked for, by kernel
    if (blocks == 0) return;
    STD_TORCH_CHECK(blocks <= 2147483647, "fastwhiten: expected at most 2^31 - 1 blocks, got ",
                    blocks, "; split the batch");
    if (shared > kDefaultShared) {
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared)));
    }
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
             static_cast<size_t>(shared), stream_>>>(Parameters(values)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // a [B, D, D], its lower triangle -> ascending values [B, D], vectors [B, D, D] in columns. The
  // sweeps begin from the start [B, D, D] where it is there and orthogonal, and are counted in
  // sweeps [B], if it is not null; the library knows neither (it leaves -1).
  template <class T>
  void eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start = nullptr,
            int32_t* sweeps = nullptr) const;
  // The eigensystem of a blended covariance and its whitening matrix in one launch; false, and
  // nothing, for a D without such a kernel.
  template <class T>
  bool block_factor(const Factor<T>& blended) const;
  // The same as eigh by the library, for D above our own kernels' limit.
  template <class T>
  void library_eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) const;
  // matrix = L^{-T} by the library, for D above kCholeskyLimit; arguments as run_cholesky's.
  template <class T>
  void cholesky(int64_t G, int64_t D, const T* blended, const T* rho, double eps, T* matrix) const;

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace cuda
}  // namespace fastwhiten

// Every pair of input and accumulation type.
#define FASTWHITEN_FOR_DEVICE_TYPES(F) \
  F(__half, float)                     \
  F(__nv_bfloat16, float)              \
  F(float, float)                      \
  F(__half, double)                    \
  F(__nv_bfloat16, double)             \
  F(float, double)                     \
  F(double, double)
