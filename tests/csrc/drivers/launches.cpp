// What the launchers of csrc/cuda launch kernels with, and run none of them:
//
//   launches 232448
//
// takes the shared memory that a block may have and prints for every kernel its mangled name, the
// threads of a block and the bytes of shared memory, the most of all launches over every case of
// main(). Exit code 3, with a message, where a launch asks for more than a block may have.
#include <algorithm>
#include <iostream>
#include <vector>

#include "cuda/apply.cuh"
#include "cuda/backward_apply.cuh"
#include "cuda/backward_matrix.cuh"
#include "cuda/backward_reduce.cuh"
#include "cuda/eigh.cuh"
#include "cuda/factor_stage.cuh"
#include "cuda/fill.cuh"
#include "cuda/intensity.cuh"
#include "cuda/library.cuh"
#include "cuda/sample.cuh"
#include "cuda/statistics.cuh"
#include "cuda/whiten.cuh"
#include "emulator/recorder.h"

namespace {

using namespace fastwhiten;
using namespace fastwhiten::cuda;
using emulation::AnyArray;

constexpr AnyArray kAny;
constexpr double kEps = 1e-3;

// The library's part launches kernels of its own.
struct NoSolver {
  template <class Device, class T>
  void eigh(Device&, int64_t, int64_t, T*, T*, int32_t*) const {}
};

// The library's part of device.h is PyTorch's and cuSOLVER's; the kernels around it are ours.
struct Device : emulation::Recorder {
  using Recorder::Recorder;

  template <class T>
  void eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start = nullptr,
            int32_t* sweeps = nullptr) {
    run_eigh(*this, EighProblem<T>{B, D, a, values, vectors, start, sweeps});
  }
  template <class T>
  bool block_factor(const Factor<T>& blended) {
    return run_block_factor(*this, blended);
  }
  template <class T>
  void library_eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) {
    const auto solver = NoSolver{};
    run_batched_eigh(*this, solver, B, D, a, values, vectors);
  }
  template <class T>
  void cholesky(int64_t G, int64_t D, const T* blended, const T* rho, double, T* matrix) {
    run_shift(*this, ShiftArguments<T>{G, D, blended, rho, T(kEps), kAny, kAny});
    run_flip_or_nan(*this, FlipArguments<T>{G, D, D * D, 1, D, kAny, kAny, matrix});
  }
};

template <class T>
const T* if_so(bool given) {
  return given ? static_cast<const T*>(kAny) : nullptr;
}

// Whole passes, every kind and every way to shrink (run_intensity, and none).
template <class In, class T>
void passes(Device& device, const Layout& s) {
  WhitenForward<In, T> forward{};
  forward.s = s;
  forward.x = kAny;
  forward.y = kAny;
  forward.gamma = forward.beta = forward.p = forward.running = forward.start = kAny;
  forward.mean = forward.covariance = forward.eigenvalues = kAny;
  forward.basis = forward.matrix = forward.rho = kAny;
  forward.batch_weight = 0.5;
  forward.eps = kEps;
  WhitenBackward<In, T> backward{};
  backward.s = s;
  backward.grad = backward.x = kAny;
  backward.dx = kAny;
  backward.mean = backward.eigenvalues = backward.basis = backward.matrix = kAny;
  backward.gamma = backward.p = kAny;
  backward.grad_gamma = backward.grad_sum = kAny;
  backward.batch_weight = 0.5;
  for (int64_t kind = 0; kind < 3; ++kind) {
    for (int64_t method = 0; method < 4; ++method) {
      forward.kind = kind;
      forward.method = method;
      run_whiten_forward(device, forward);
    }
    for (const bool shrunk : {false, true}) {
      backward.kind = kind;
      backward.rho = if_so<T>(shrunk);
      run_whiten_backward(device, backward);
    }
  }
}

// The stages as ops of their own, of the input.
template <class In, class T>
void stages(Device& device, const Layout& s) {
  run_statistics(device, Statistics<In, T>{s, kAny, kAny, kAny, kAny});
  for (const int64_t method : {1, 2, 3}) {
    run_intensity(device,
                  Intensity<In, T>{s, kAny, kAny, kAny, kAny, kAny, 0.5, method, 0.1, kAny});
  }
  run_apply(device, Apply<In, T>{s, kAny, kAny, kAny, kAny, kAny, kAny});
  run_backward_reduce(device, BackwardReduce<In, T>{s, kAny, kAny, kAny, kAny, kAny});
  run_backward_apply(device,
                     BackwardApply<In, T>{s, kAny, kAny, kAny, kAny, kAny, kAny, kAny, kAny, kAny});
}

// ... of matrices.
template <class T>
void stages_of_matrices(Device& device, int64_t G, int64_t D) {
  device.eigh<T>(G, D, kAny, kAny, kAny, kAny, kAny);
  for (int64_t kind = 0; kind < 3; ++kind) {
    for (const bool shrunk : {false, true}) {
      const T* const rho = if_so<T>(shrunk);
      run_factor(device, Factor<T>{G, D, kAny, kAny, rho, 0.5, kEps, kind, kAny, kAny, kAny, kAny});
      run_backward_matrix(device, BackwardMatrix<T>{G, D, kAny, kAny, kAny, kAny, kAny, rho, 0.5,
                                                    kind, kAny, kAny});
    }
  }
}

// ... and of fewer rows than channels.
template <class In, class T>
void sample_side(Device& device, const Layout& s) {
  run_sample_statistics(device, SampleStatistics<In, T>{s, kAny, kAny, kAny, kAny, kAny});
  device.eigh<T>(s.groups, s.samples, kAny, kAny, kAny);
  for (const bool shrunk : {false, true}) {
    const T* const rho = if_so<T>(shrunk);
    run_sample_apply(device, SampleApply<In, T>{s, kAny, kAny, kAny, kAny, rho, kEps, kAny, kAny});
    run_sample_backward(device,
                        SampleBackward<In, T>{s, kAny, kAny, kAny, kAny, kAny, rho, kEps, kAny});
  }
}

// Rows and planes: the scenes of benchmarks/ and what lies on both sides of every limit of a path.
template <class In, class T>
void of_layouts(Device& device, int64_t D) {
  for (const int64_t M : {int64_t{2}, int64_t{128}, int64_t{256}, kSmallRows, kSmallRows + 1}) {
    for (const Layout& s : {Layout{M, D, 1, 1, D}, Layout{M, 8 * D, 1, 8, D}}) {
      passes<In, T>(device, s);
      stages<In, T>(device, s);
    }
    sample_side<In, T>(device, {M, 8 * D, 1, 8, D});
  }
  for (const Layout& s : {Layout{2, D, 50, 1, D}, Layout{64, D, 32 * 32, 1, D}}) {
    passes<In, T>(device, s);
    stages<In, T>(device, s);
  }
}

template <class In, class T>
void of_types(Device& device) {
  constexpr int64_t limit = std::max({kBlockUpTo<float>, kCholeskyLimit, int{kTile}});
  std::vector<int64_t> widths = {256, 512, 2048};
  for (int64_t D = 1; D <= limit + 1; ++D) widths.push_back(D);
  for (const int64_t D : widths) {
    of_layouts<In, T>(device, D);
    if constexpr (std::is_same_v<In, T>) {
      for (const int64_t G : {1, 8, 65536}) stages_of_matrices<T>(device, G, D);
    }
  }
  // One launch for few rows: as many as fit, and some D comes closest to the limit. For smaller D
  // kSmallRows fit.
  for (int64_t D = kWarpUpTo + 1; D <= kBothUpTo; ++D) {
    for (int64_t M = 2; M <= kSmallRows; ++M) passes<In, T>(device, {M, D, 1, 1, D});
  }
  fill<Device, T>(device, kAny, 1, T(0));  // no rows
}

void every_type(Device& device) {
  of_types<float, float>(device);
#ifndef FLOAT_ONLY
  of_types<Half, float>(device);
  of_types<BFloat16, float>(device);
  of_types<Half, double>(device);
  of_types<BFloat16, double>(device);
  of_types<float, double>(device);
  of_types<double, double>(device);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: " << argv[0] << " bytes of shared memory\n";
    return 2;
  }
  try {
    Device device(std::stoll(argv[1]));
    every_type(device);
    for (const auto& [name, launch] : device.launches()) {
      std::cout << name << ' ' << launch.threads << ' ' << launch.shared << '\n';
    }
  } catch (const emulation::Error& error) {
    std::cerr << error.what() << '\n';
    return 3;
  }
  return 0;
}
