// a = V diag(l) V^T for B symmetric matrices: l ascending, eigenvectors as columns of V, the
// component of largest magnitude positive (the first of equals). A matrix with a non-finite entry
// gives NaN for itself alone. Who computes what: one warp a matrix with two-sided Jacobi up to D =
// 8, of many matrices 16; one block with one-sided Jacobi up to 128 (64 for double). Mathematics,
// bytes, shared memory: in the two files. Deterministic: no result depends on which thread is
// first.
#pragma once

#include "../common/passes.h"
#include "block_whitening.cuh"
#include "fill.cuh"
#include "jacobi_one_sided.cuh"
#include "jacobi_warp.cuh"

namespace fastwhiten {
namespace cuda {

constexpr int kWarpUpTo = 16;
// Matrices of order 9 to 16 that a block each serves: a warp takes twice as long.
constexpr int64_t kFewMatrices = 528;  // four for every multiprocessor of the largest devices
#ifdef FASTWHITEN_EMULATE
inline int64_t few_matrices = kFewMatrices;  // tests ask for none: the warps of many
#else
constexpr int64_t few_matrices = kFewMatrices;
#endif
inline bool takes_blocks(int64_t B, int64_t D) {
  return D > (B <= few_matrices ? kWarpUpTo / 2 : kWarpUpTo);
}
constexpr int kWarpsOfBlock = 4;  // matrices a block of eigh_warp_kernel

template <class T>
struct EighProblem {
  int64_t B, D;
  const T* a;       // [B, D, D], of which the lower triangle is read
  T* values;        // [B, D]
  T* vectors;       // [B, D, D]
  const T* start;   // [B, D, D] or null: where the sweeps begin
  int32_t* sweeps;  // [B], or null
  // By a block: W [B, D, D] of the eigensystems too, unless it is null. Values are then l.
  T* whitening = nullptr;
  int64_t kind = 0;        // 0 zca, 1 pca
  const T* rho = nullptr;  // [B] or null
  T eps = 0;
};

template <class T>
__device__ __forceinline__ const T* start_of(const EighProblem<T>& e, int64_t b) {
  return e.start == nullptr ? nullptr : e.start + b * e.D * e.D;
}

template <class T, int N>
__global__ void __launch_bounds__(32 * kWarpsOfBlock, 1) eigh_warp_kernel(EighProblem<T> e) {
  const int64_t step = int64_t{gridDim.x} * kWarpsOfBlock, square = int64_t{e.D} * e.D;
  for (int64_t b = int64_t{blockIdx.x} * kWarpsOfBlock + threadIdx.x / 32; b < e.B; b += step) {
    const int count = warp_eigh<T, N>(static_cast<int>(e.D), e.a + b * square, start_of(e, b),
                                      e.values + b * e.D, e.vectors + b * square);
    if (e.sweeps != nullptr && threadIdx.x % 32 == 0) e.sweeps[b] = count;
  }
}

// One block per matrix.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads<N>, 1) eigh_block_kernel(EighProblem<T> e) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int D = static_cast<int>(e.D);
  const int64_t b = blockIdx.x, square = int64_t{e.D} * e.D;
  const EigenShared<T, N> shared(arena, D);
  T *const values = e.values + b * D, *const vectors = e.vectors + b * square;
  load_symmetric<N>(D, e.a + b * square, shared.matrix);
  const int sweeps = block_eigh(shared, e.a + b * square, start_of(e, b), vectors);
  if (e.whitening != nullptr) {
    block_whitening(shared, e.kind, e.rho != nullptr, e.rho != nullptr ? e.rho[b] : T(0), e.eps,
                    values, vectors, e.whitening + b * square);
    return;
  }
  rank_rows(shared);
  const Scale<T> scale = shared.scale();
  each_component(shared, [&](int r, int c, int k, T entry) {
    vectors[r * D + c] = entry;
    if (r == 0) values[c] = scale.undo(shared.values[k]);
  });
  if (e.sweeps != nullptr && threadIdx.x == 0) e.sweeps[b] = sweeps;
}

// Calls launch(kernel, blocks, threads, shared bytes, problem) with what serves the problem; false,
// and nothing, where another has to. B > 0 and D > 0. A block may have `shared_limit` bytes.
template <class T, class Launch>
bool launch_block_eigh(const EighProblem<T>& e, int64_t shared_limit, const Launch& launch) {
  if (!takes_blocks(e.B, e.D) || e.D > kBlockUpTo<T>) return false;
  const auto block = [&](auto* kernel, int threads, int64_t bytes) {
    if (bytes > shared_limit) return false;
    launch(kernel, e.B, threads, bytes, e);
    return true;
  };
  constexpr int64_t k32 = EigenShared<T, 32>::kBytes, k64 = EigenShared<T, 64>::kBytes;
  if constexpr (kBlockUpTo<T> > 64) {
    constexpr int64_t k128 = EigenShared<T, 128>::kBytes;
    if (e.D > 64) return block(eigh_block_kernel<T, 128>, kBlockThreads<128>, k128);
  }
  return e.D <= 32 ? block(eigh_block_kernel<T, 32>, kBlockThreads<32>, k32)
                   : block(eigh_block_kernel<T, 64>, kBlockThreads<64>, k64);
}
template <class T, class Launch>
bool launch_eigh(const EighProblem<T>& e, int64_t shared_limit, const Launch& launch) {
  if (takes_blocks(e.B, e.D)) return launch_block_eigh(e, shared_limit, launch);
  constexpr int64_t kMostBlocks = 2147483647;
  const int64_t blocks = (e.B + kWarpsOfBlock - 1) / kWarpsOfBlock;
  auto* kernel = e.D <= 4   ? eigh_warp_kernel<T, 4>
                 : e.D <= 8 ? eigh_warp_kernel<T, 8>
                            : eigh_warp_kernel<T, 16>;
  launch(kernel, blocks < kMostBlocks ? blocks : kMostBlocks, 32 * kWarpsOfBlock, int64_t{0}, e);
  return true;
}

// The eigensolver of a Device (device.h: eigh): our own kernel, else the library's.
template <class Device, class T>
void run_eigh(Device& device, const EighProblem<T>& e) {
  const auto launch = [&](const auto&... of_launch) { device.launch(of_launch...); };
  if (launch_eigh(e, device.shared_limit(), launch)) return;
  if (e.sweeps != nullptr) fill(device, e.sweeps, e.B, int32_t{-1});
  device.library_eigh(e.B, e.D, e.a, e.values, e.vectors);
}

// The whitening matrix of a Device (device.h: block_factor), by the block that solves; false, and
// nothing, where it takes more than one launch.
template <class Device, class T>
bool run_block_factor(Device& device, const Factor<T>& f) {
  const auto launch = [&](const auto&... of_launch) { device.launch(of_launch...); };
  const EighProblem<T> e{
      f.G,      f.D,    f.covariance, f.eigenvalues,        f.basis, f.start, nullptr,
      f.matrix, f.kind, f.rho,        static_cast<T>(f.eps)};
  return launch_block_eigh(e, device.shared_limit(), launch);
}

}  // namespace cuda
}  // namespace fastwhiten
