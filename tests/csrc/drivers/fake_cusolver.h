// A cuSOLVER for tests, as functions of the program: dlsym finds them as it finds NVIDIA's. Their
// declarations are those of cusolverDn.h (11.7 and 12), their rules those of its manual, and the
// eigensystems come from Jacobi's method. What breaks a rule is answered with a status.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "emulator/types.h"

struct cusolverDnContext {
  std::atomic<bool> busy{false};
  cudaStream_t stream = nullptr;
};
struct cusolverDnParams {
  int unused;
};
typedef cusolverDnContext* cusolverDnHandle_t;
typedef cusolverDnParams* cusolverDnParams_t;
enum cusolverStatus_t {
  CUSOLVER_STATUS_SUCCESS = 0,
  CUSOLVER_STATUS_INVALID_VALUE = 3,
  CUSOLVER_STATUS_EXECUTION_FAILED = 6,
  CUSOLVER_STATUS_INTERNAL_ERROR = 7,
  CUSOLVER_STATUS_INVALID_WORKSPACE = 31
};
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER = 0, CUBLAS_FILL_MODE_UPPER = 1 };
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_64F = 1 };

namespace fake {

inline int version = 12004;
inline std::string fails;  // the function that does, once, with this status
inline int fails_with = 0;
inline std::atomic<int> relaxed{0};   // how many threads may allocate during a capture
constexpr double kNeverSolved = 1e6;  // in the first place of a matrix
inline std::deque<cusolverDnContext> handles;
inline std::deque<cusolverDnParams> params;
inline std::vector<int64_t> batches;  // of every call
inline std::mutex mutex;              // of all of these

// Lets nobody on before as many are here as work at a time, and then all of them.
struct Meeting {
  int64_t wanted = 1;

  void come(bool the_last) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (the_last) wanted = 1;
    const int64_t mine = round_;
    if (++here_ >= wanted) {
      here_ = 0;
      ++round_;
      all_.notify_all();
    }
    all_.wait(lock, [&] { return round_ != mine; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  int64_t here_ = 0, round_ = 0;
};
inline Meeting meeting;

inline bool fail(const char* function, cusolverStatus_t& status) {
  if (fails != function) return false;
  fails.clear();
  status = static_cast<cusolverStatus_t>(fails_with);
  return true;
}

inline std::size_t work_bytes(int64_t n, int64_t batch) {
  return static_cast<std::size_t>(8 * (n * n + 1) * batch);
}
inline std::size_t host_bytes(int64_t n) { return static_cast<std::size_t>(8 * n); }

// a [n, n] in columns, of which one triangle is read -> values [n], eigenvectors in its columns.
template <class T>
void jacobi(int64_t n, bool upper, T* a, int64_t lda, T* values) {
  const auto N = static_cast<std::size_t>(n), L = static_cast<std::size_t>(lda);
  std::vector<double> s(N * N), v(N * N);
  for (std::size_t j = 0; j < N; ++j) {
    for (std::size_t i = 0; i < N; ++i) {
      const bool given = upper ? i <= j : i >= j;
      s[i + j * N] = given ? a[i + j * L] : a[j + i * L];
      v[i + j * N] = i == j;
    }
  }
  for (int sweep = 0; sweep < 15; ++sweep) {
    for (std::size_t p = 0; p < N; ++p) {
      for (std::size_t q = p + 1; q < N; ++q) {
        if (s[p + q * N] == 0) continue;
        const double theta = (s[q + q * N] - s[p + p * N]) / (2 * s[p + q * N]);
        const double t = std::copysign(1, theta) / (std::fabs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0), sine = c * t;
        for (std::size_t k = 0; k < N; ++k) {  // S and V from the right
          const double sp = s[k + p * N], sq = s[k + q * N], vp = v[k + p * N], vq = v[k + q * N];
          s[k + p * N] = c * sp - sine * sq, s[k + q * N] = sine * sp + c * sq;
          v[k + p * N] = c * vp - sine * vq, v[k + q * N] = sine * vp + c * vq;
        }
        for (std::size_t k = 0; k < N; ++k) {  // S from the left
          const double sp = s[p + k * N], sq = s[q + k * N];
          s[p + k * N] = c * sp - sine * sq, s[q + k * N] = sine * sp + c * sq;
        }
      }
    }
  }
  std::vector<std::size_t> order(N);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t x, std::size_t y) { return s[x + x * N] < s[y + y * N]; });
  for (std::size_t j = 0; j < N; ++j) {
    const double sign = j % 2 == 0 ? 1 : -1;  // some are wrong, whatever they were
    values[j] = static_cast<T>(s[order[j] + order[j] * N]);
    for (std::size_t i = 0; i < N; ++i) a[i + j * L] = static_cast<T>(sign * v[i + order[j] * N]);
  }
}

template <class T>
void solve(cublasFillMode_t uplo, int64_t n, T* a, int64_t lda, T* values, int* info,
           int64_t batch) {
  for (int64_t b = 0; b < batch; ++b, a += lda * n, values += n) {
    info[b] = static_cast<double>(a[0]) == kNeverSolved;
    if (info[b] == 0) jacobi(n, uplo == CUBLAS_FILL_MODE_UPPER, a, lda, values);
  }
}

inline bool valid(cusolverDnHandle_t handle, cusolverDnParams_t given, cusolverEigMode_t jobz,
                  cublasFillMode_t uplo, int64_t n, cudaDataType a_type, int64_t lda,
                  cudaDataType w_type, cudaDataType compute, int64_t batch) {
  bool known = false, configured = false;
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto& one : handles) known = known || &one == handle;
  for (auto& one : params) configured = configured || &one == given;
  return known && configured && jobz == CUSOLVER_EIG_MODE_VECTOR &&
         (uplo == CUBLAS_FILL_MODE_LOWER || uplo == CUBLAS_FILL_MODE_UPPER) && n > 0 &&
         (a_type == CUDA_R_32F || a_type == CUDA_R_64F) && w_type == a_type && compute == a_type &&
         lda >= n && batch > 0 && n * lda * batch <= 2147483647;
}

}  // namespace fake

extern "C" {

cusolverStatus_t cusolverGetVersion(int* version) {
  *version = fake::version;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
  if (fake::fail("cusolverDnCreate", status)) return status;
  if (fake::relaxed == 0) return CUSOLVER_STATUS_INTERNAL_ERROR;  // cudaMalloc, while capturing
  *handle = &fake::handles.emplace_back();
  return status;
}

cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
  if (fake::fail("cusolverDnCreateParams", status)) return status;
  *params = &fake::params.emplace_back();
  return status;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t jobz,
    cublasFillMode_t uplo, int64_t n, cudaDataType dataTypeA, const void*, int64_t lda,
    cudaDataType dataTypeW, const void*, cudaDataType computeType, size_t* workspaceInBytesOnDevice,
    size_t* workspaceInBytesOnHost, int64_t batchSize) {
  cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
  if (fake::fail("cusolverDnXsyevBatched_bufferSize", status)) return status;
  if (!fake::valid(handle, params, jobz, uplo, n, dataTypeA, lda, dataTypeW, computeType,
                   batchSize)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *workspaceInBytesOnDevice = fake::work_bytes(n, batchSize);
  *workspaceInBytesOnHost = fake::host_bytes(n);
  return status;
}

cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                        cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
                                        cudaDataType dataTypeA, void* A, int64_t lda,
                                        cudaDataType dataTypeW, void* W, cudaDataType computeType,
                                        void* bufferOnDevice, size_t workspaceInBytesOnDevice,
                                        void* bufferOnHost, size_t workspaceInBytesOnHost,
                                        int* info, int64_t batchSize) {
  cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
  if (fake::fail("cusolverDnXsyevBatched", status)) return status;
  if (!fake::valid(handle, params, jobz, uplo, n, dataTypeA, lda, dataTypeW, computeType,
                   batchSize) ||
      batchSize > 32768 || workspaceInBytesOnDevice != fake::work_bytes(n, batchSize) ||
      workspaceInBytesOnHost != fake::host_bytes(n)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  const bool shared = handle->busy.exchange(true);
  fake::meeting.come(shared);
  if (shared) return CUSOLVER_STATUS_EXECUTION_FAILED;
  const cudaStream_t stream = handle->stream;
  std::memset(bufferOnDevice, 255, workspaceInBytesOnDevice);  // a sanitizer sees what is missing
  std::memset(bufferOnHost, 255, workspaceInBytesOnHost);
  if (dataTypeA == CUDA_R_64F) {
    fake::solve(uplo, n, static_cast<double*>(A), lda, static_cast<double*>(W), info, batchSize);
  } else {
    fake::solve(uplo, n, static_cast<float*>(A), lda, static_cast<float*>(W), info, batchSize);
  }
  {
    const std::lock_guard<std::mutex> lock(fake::mutex);
    fake::batches.push_back(batchSize);
  }
  if (handle->stream != stream) status = CUSOLVER_STATUS_EXECUTION_FAILED;
  handle->busy = false;
  return status;
}

}  // extern "C"
