// Around the library's solvers, for D beyond our own kernels: what they are given and what becomes
// of their results. A matrix that is not finite is replaced before the library sees it (its solvers
// raise, or never end), and gives NaN for itself alone; so does one that the library reports as
// unsolved. Bytes: every matrix in and out once or twice.
#pragma once

#include "cholesky.cuh"
#include "reduce.cuh"

namespace fastwhiten {
namespace cuda {

// One block per matrix: guarded [B, D, D] = a, or I where a (its lower triangle) is not finite.
template <class T>
__global__ void __launch_bounds__(256)
    guard_kernel(int64_t D, const T* a, T* guarded, int32_t* finite) {
  const int64_t base = blockIdx.x * D * D;
  bool fine = true;
  for (int64_t e = threadIdx.x; e < D * D; e += blockDim.x) {
    const T value = a[base + e];
    fine = fine && (e % D > e / D || value - value == T(0));
  }
  fine = __syncthreads_and(fine);
  for (int64_t e = threadIdx.x; e < D * D; e += blockDim.x) {
    guarded[base + e] = fine ? a[base + e] : (e / D == e % D ? T(1) : T(0));
  }
  if (threadIdx.x == 0) finite[blockIdx.x] = fine;
}

// One warp per eigenvector: makes its component of largest magnitude (the first one on ties)
// positive, NaN where the matrix was not finite or was not solved. from: element (b, i, j) at
// b * batch + i * row + j * column.
template <class T>
struct NormalizeArguments {
  int64_t B, D, batch, row, column;
  const T* from;
  const T* from_values;   // [B, D]
  const int32_t* finite;  // [B]
  const int32_t* info;    // [B], nonzero where it was not solved; null: all were
  T* vectors;             // [B, D, D]
  T* values;              // [B, D]
};

constexpr int kNormalizeThreads = 128;

template <class T>
__global__ void __launch_bounds__(kNormalizeThreads) normalize_kernel(NormalizeArguments<T> in) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kNormalizeThreads + threadIdx.x) / 32;
  if (warp >= in.B * in.D) return;  // whole warps leave
  const int64_t b = warp / in.D, j = warp % in.D;
  const T* const column = in.from + b * in.batch + j * in.column;
  T largest = 0;
  int64_t place = in.D;
  for (int64_t i = lane; i < in.D; i += 32) {
    const T size = fabs(column[i * in.row]);
    if (size > largest) {
      largest = size;
      place = i;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, largest, distance);
    const int64_t other_place = __shfl_xor_sync(0xffffffffu, place, distance);
    if (other > largest || (other == largest && other_place < place)) {
      largest = other;
      place = other_place;
    }
  }
  const T sign = place < in.D && column[place * in.row] < T(0) ? T(-1) : T(1);
  const bool fine = in.finite[b] && (in.info == nullptr || in.info[b] == 0);
  for (int64_t i = lane; i < in.D; i += 32) {
    in.vectors[(b * in.D + i) * in.D + j] = fine ? sign * column[i * in.row] : kNaN<T>;
  }
  if (lane == 0) in.values[warp] = fine ? in.from_values[warp] : kNaN<T>;
}

// The launches: before and after the library's eigensolver, before and after its Cholesky.

template <class Device, class T>
void run_guard(Device& device, int64_t B, int64_t D, const T* a, T* guarded, int32_t* finite) {
  device.launch(guard_kernel<T>, B, 256, 0, D, a, guarded, finite);
}

template <class Device, class T>
void run_normalize(Device& device, const NormalizeArguments<T>& in) {
  device.launch(normalize_kernel<T>, (in.B * in.D * 32 + kNormalizeThreads - 1) / kNormalizeThreads,
                kNormalizeThreads, 0, in);
}

// The eigensystems by a Solver: eigh(device, B, D, a, values, info) as Cusolver's.
template <class Device, class Solver, class T>
void run_batched_eigh(Device& device, Solver& solver, int64_t B, int64_t D, const T* a, T* values,
                      T* vectors) {
  const auto matrices = device.template allocate<T>(B * D * D);
  const auto found = device.template allocate<T>(B * D);
  const auto finite = device.template allocate<int32_t>(B);
  const auto info = device.template allocate<int32_t>(B);
  run_guard(device, B, D, a, matrices.get(), finite.get());
  solver.eigh(device, B, D, matrices.get(), found.get(), info.get());
  run_normalize(device, NormalizeArguments<T>{B, D, D * D, 1, D, matrices.get(), found.get(),
                                              finite.get(), info.get(), vectors, values});
}

template <class Device, class T>
void run_shift(Device& device, const ShiftArguments<T>& in) {
  device.launch(shift_kernel<T>, in.groups, 256, static_cast<int64_t>(kReduceWords * sizeof(T)),
                in);
}

template <class Device, class T>
void run_flip_or_nan(Device& device, const FlipArguments<T>& in) {
  device.launch(flip_or_nan_kernel<T>, (in.groups * in.width * in.width + 255) / 256, 256, 0, in);
}

}  // namespace cuda
}  // namespace fastwhiten
