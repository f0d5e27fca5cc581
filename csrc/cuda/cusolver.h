// cuSOLVER's batched eigensolver: one call for all matrices. Its functions are looked up at run
// time, in what torch is linked with: a wheel of torch brings the cuSOLVER of its CUDA version, and
// a toolkit need not have the headers. Declared here as in cusolverDn.h, where handles are
// pointers, enumerations and status codes int.
//
// Up to order 512 it does not wait for the device, and CUDA graphs capture it; above, cuSOLVER
// itself waits. No header of CUDA or torch here: tests run this with a cuSOLVER of their own. A
// Device has index(), stream(), allocate<P>(count), and CaptureRelaxed: while one lives, its thread
// may allocate device memory though a graph is being captured.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastwhiten {
namespace cuda {

class Cusolver {
 public:
  // What `library` (a handle of dlopen, or null) or one that it depends on defines.
  explicit Cusolver(void* library) {
    const bool found = find(library, "cusolverGetVersion", get_version_) &&
                       find(library, "cusolverDnCreate", create_) &&
                       find(library, "cusolverDnCreateParams", create_params_) &&
                       find(library, "cusolverDnSetStream", set_stream_) &&
                       find(library, "cusolverDnXsyevBatched_bufferSize", buffer_size_) &&
                       find(library, "cusolverDnXsyevBatched", syev_batched_);
    int version = 0;
    if (!found || get_version_(&version) != 0) {
      missing_ = "no cusolverDnXsyevBatched was found";
      return;
    }
    version_ = "cuSOLVER " + text(version);
    if (version < kOldest) missing_ = version_ + " is older than " + text(kOldest);
  }

  bool usable() const { return missing_.empty(); }
  const std::string& missing() const { return missing_; }  // why it is not usable
  const std::string& version() const { return version_; }

  // a [B, D, D], of which the lower triangle (of rows) is read -> ascending values [B, D]; a
  // becomes the eigenvectors, one after another. info [B]: nonzero where there are none.
  template <class Device, class T>
  void eigh(Device& device, int64_t B, int64_t D, T* a, T* values, int32_t* info) {
    Lease lease(*this, device.index());
    Handle& handle = lease.handle;
    if (handle.params == nullptr) {
      const typename Device::CaptureRelaxed relaxed;
      if (handle.solver == nullptr) check(create_(&handle.solver), "cusolverDnCreate");
      check(create_params_(&handle.params), "cusolverDnCreateParams");
    }
    check(set_stream_(handle.solver, device.stream()), "cusolverDnSetStream");
    constexpr int64_t kMostElements = std::numeric_limits<int32_t>::max();  // of one call
    const int64_t most = std::max<int64_t>(std::min(kMostMatrices, kMostElements / (D * D)), 1);
    constexpr int type = sizeof(T) == 8 ? kDouble : kFloat;
    for (int64_t b = 0; b < B; b += most) {
      const int64_t count = std::min(most, B - b);
      T* const matrices = a + b * D * D;
      std::size_t device_bytes = 0, host_bytes = 0;
      check(buffer_size_(handle.solver, handle.params, kVectors, kUpper, D, type, matrices, D, type,
                         values + b * D, type, &device_bytes, &host_bytes, count),
            "cusolverDnXsyevBatched_bufferSize", count, D);
      const auto work = device.template allocate<char>(static_cast<int64_t>(device_bytes));
      std::vector<char> host_work(host_bytes);
      check(syev_batched_(handle.solver, handle.params, kVectors, kUpper, D, type, matrices, D,
                          type, values + b * D, type, work.get(), device_bytes, host_work.data(),
                          host_bytes, info + b, count),
            "cusolverDnXsyevBatched", count, D);
    }
  }

 private:
  // 11.7.1 has the function, too, but solves wrongly unless its workspace is zero at the start
  // (pytorch/pytorch#192483).
  static constexpr int kOldest = 11703;
  static constexpr int64_t kMostMatrices = 16384;  // of one call: it has refused 40,000
  static constexpr int64_t kMostOrder = 512;       // up to which it does not wait
  // cudaDataType, cusolverEigMode_t. cublasFillMode_t: our rows are its columns, so that the lower
  // triangle is its upper one.
  static constexpr int kFloat = 0, kDouble = 1, kVectors = 1, kUpper = 1;

  struct Handle {
    void* solver = nullptr;
    void* params = nullptr;
  };

  // A handle for one call: threads must not share one, streams may. The next call takes the one
  // that the last gave back, so one call before a CUDA graph leaves nothing to be created in it.
  // None is ever destroyed, at exit neither: CUDA may have ended before.
  struct Lease {
    Lease(Cusolver& cusolver, int32_t index) : owner(cusolver), device(index) {
      const std::lock_guard<std::mutex> lock(owner.mutex_);
      std::vector<Handle>& idle = owner.idle_[device];
      if (idle.empty()) return;
      handle = idle.back();
      idle.pop_back();
    }
    ~Lease() {
      const std::lock_guard<std::mutex> lock(owner.mutex_);
      if (handle.solver != nullptr) owner.idle_[device].push_back(handle);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Cusolver& owner;
    int32_t device;
    Handle handle;
  };

  template <class F>
  static bool find(void* library, const char* name, F*& function) {
    if (library != nullptr) function = reinterpret_cast<F*>(dlsym(library, name));
    return function != nullptr;
  }

  static std::string text(int version) {  // 11703: "11.7.3"
    return std::to_string(version / 1000) + "." + std::to_string(version / 100 % 10) + "." +
           std::to_string(version % 100);
  }

  static void check(int status, const char* function, int64_t B = 0, int64_t D = 0) {
    if (status == 0) return;
    constexpr int kAllocFailed = 2, kNamed = 8;
    static const char* const kNames[kNamed] = {
        "SUCCESS",       "NOT_INITIALIZED", "ALLOC_FAILED",     "INVALID_VALUE",
        "ARCH_MISMATCH", "MAPPING_ERROR",   "EXECUTION_FAILED", "INTERNAL_ERROR"};
    std::string message = std::string("eigh: ") + function;
    if (B > 0) message += " of " + std::to_string(B) + " matrices of order " + std::to_string(D);
    message += ": expected success, got status " + std::to_string(status);
    if (status > 0 && status < kNamed) message += std::string(" (") + kNames[status] + ")";
    if (status == kAllocFailed) {
      message += "; it allocates beside PyTorch: torch.cuda.empty_cache() makes room";
    } else if (D > kMostOrder) {
      message += "; in a CUDA graph, keep to order " + std::to_string(kMostOrder) +
                 ": above it cuSOLVER waits for the device";
    }
    throw std::runtime_error(message);
  }

  int (*get_version_)(int* version) = nullptr;
  int (*create_)(void** handle) = nullptr;
  int (*create_params_)(void** params) = nullptr;
  int (*set_stream_)(void* handle, void* stream) = nullptr;
  int (*buffer_size_)(void* handle, void* params, int mode, int triangle, int64_t n, int a_type,
                      const void* a, int64_t lda, int values_type, const void* values,
                      int compute_type, std::size_t* device_bytes, std::size_t* host_bytes,
                      int64_t batch) = nullptr;
  int (*syev_batched_)(void* handle, void* params, int mode, int triangle, int64_t n, int a_type,
                       void* a, int64_t lda, int values_type, void* values, int compute_type,
                       void* device_work, std::size_t device_bytes, void* host_work,
                       std::size_t host_bytes, int* info, int64_t batch) = nullptr;

  std::string missing_, version_;
  std::mutex mutex_;
  std::map<int32_t, std::vector<Handle>> idle_;  // by device
};

}  // namespace cuda
}  // namespace fastwhiten
