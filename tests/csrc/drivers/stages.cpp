// Every stage of csrc/cuda but the eigensolver, launched as on a device, in the emulator.
#include <algorithm>

#include "cuda/apply.cuh"
#include "cuda/backward_apply.cuh"
#include "cuda/backward_matrix.cuh"
#include "cuda/backward_reduce.cuh"
#include "cuda/eigh.cuh"
#include "cuda/factor_stage.cuh"
#include "cuda/intensity.cuh"
#include "cuda/library.cuh"
#include "cuda/sample.cuh"
#include "cuda/statistics.cuh"
#include "cuda/whiten.cuh"
#include "emulator/driver.h"
#include "emulator/host_eigh.h"

namespace {

using namespace fastwhiten;
using namespace fastwhiten::cuda;
using emulation::Arguments;

int64_t launches = 0;                     // so far, for tests that count them
int64_t of_a_block = int64_t{227} << 10;  // bytes of shared memory

// The Device of stages.h.
struct Emulator {
  emulation::Order order;

  template <class P>
  emulation::GlobalArray<P> allocate(int64_t count) {
    return emulation::allocate_global<P>(static_cast<std::size_t>(count), "scratch");
  }
  template <class... Parameters, class... Values>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int64_t shared,
              const Values&... values) {
    if (blocks == 0) return;
    if (shared > shared_limit()) {
      throw emulation::Error("launched with " + std::to_string(shared) +
                             " bytes of shared memory, of which a block may have " +
                             std::to_string(shared_limit()));
    }
    ++launches;
    emulation::launch(kernel, dim3(static_cast<unsigned>(blocks)),
                      dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(shared), order,
                      values...);
  }
  int64_t shared_limit() const { return of_a_block; }
  template <class T>
  void eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors, const T* start) {
    run_eigh(*this, EighProblem<T>{B, D, a, values, vectors, start, nullptr});
  }
  template <class T>
  bool block_factor(const Factor<T>& blended) {
    return run_block_factor(*this, blended);
  }
  template <class T>
  void library_eigh(int64_t B, int64_t D, const T* a, T* values, T* vectors) {
    const auto guarded = allocate<T>(B * D * D), found = allocate<T>(B * D * D);
    const auto ascending = allocate<T>(B * D);
    const auto finite = allocate<int32_t>(B);
    run_guard(*this, B, D, a, guarded.get(), finite.get());
    for (int64_t b = 0; b < B; ++b) {
      const int64_t at = b * D * D;
      emulation::host_eigh(D, guarded.get() + at, ascending.get() + b * D, found.get() + at);
    }
    emulation::GlobalMemory::instance().filled(found.get());
    emulation::GlobalMemory::instance().filled(ascending.get());
    run_normalize(*this, NormalizeArguments<T>{B, D, D * D, D, 1, found.get(), ascending.get(),
                                               finite.get(), nullptr, vectors, values});
  }
  template <class T>
  void cholesky(int64_t, int64_t, const T*, const T*, double, T*) {
    throw emulation::Error("the library's Cholesky factorisation is not emulated");
  }
};

bool is(const Arguments& a, const char* stage) { return a.has(std::string("stage:") + stage); }

Layout layout(Arguments& a) {
  const int64_t N = a.integer("samples"), C = a.integer("channels");
  const int64_t L = a.integer("length", 1), G = a.integer("groups");
  return {N, C, L, G, C / G};
}

template <class In, class T>
void of_rows(Arguments& a) {
  Emulator device{a.order()};
  const Layout s = layout(a);
  const int64_t G = s.groups, D = s.width, C = s.channels, M = s.rows();
  const auto count = static_cast<std::size_t>(s.numel());
  const auto matrices = static_cast<std::size_t>(G * D * D), C_ = static_cast<std::size_t>(C);
  const In* const x = a.array<In>("x");
  const In* const grad = a.array<In>("grad");
  const T* const p = a.array<T>("row_weight");
  const T* const running = a.array<T>("running_covariance");
  const double weight = a.has("batch_weight") ? a.real("batch_weight") : 1;
  if (is(a, "statistics")) {
    return run_statistics(
        device,
        Statistics<In, T>{s, x, p, a.output<T>("out_mean", C_),
                          a.output<T>("out_covariance", matrices), running, weight,
                          running != nullptr ? a.output<T>("out_blended", matrices) : nullptr});
  }
  if (is(a, "apply")) {
    return run_apply(
        device, Apply<In, T>{s, x, a.array<T>("mean"), a.array<T>("matrix"), a.array<T>("gamma"),
                             a.array<T>("beta"), a.output<In>("out_y", count)});
  }
  if (is(a, "backward_reduce")) {
    return run_backward_reduce(device, BackwardReduce<In, T>{s, x, grad, a.array<T>("mean"),
                                                             a.output<T>("out_grad_sum", C_),
                                                             a.output<T>("out_cross", matrices)});
  }
  if (is(a, "backward_apply")) {
    return run_backward_apply(
        device, BackwardApply<In, T>{s, x, grad, a.array<T>("mean"), a.array<T>("grad_sum"),
                                     a.array<T>("matrix"), a.array<T>("inner"), a.array<T>("gamma"),
                                     p, a.output<In>("out_dx", count)});
  }
  if (is(a, "intensity")) {
    return run_intensity(
        device, Intensity<In, T>{s, x, a.array<T>("mean"), a.array<T>("covariance"), running, p,
                                 weight, a.integer("method"), a.real("value"),
                                 a.output<T>("out_rho", static_cast<std::size_t>(G))});
  }
  if (is(a, "sample_statistics")) {
    return run_sample_statistics(
        device, SampleStatistics<In, T>{
                    s, x, p, a.output<T>("out_mean", C_), a.output<T>("out_scaled", count),
                    a.output<T>("out_gram", static_cast<std::size_t>(G * M * M))});
  }
  if (is(a, "sample_apply")) {
    return run_sample_apply(
        device,
        SampleApply<In, T>{s, a.array<T>("scaled"), a.array<T>("eigenvalues"),
                           a.array<T>("eigenvectors"), p, a.array<T>("rho"), a.real("eps"),
                           a.output<In>("out_y", count), a.output<T>("out_projected", count)});
  }
  if (is(a, "sample_backward")) {
    return run_sample_backward(
        device, SampleBackward<In, T>{s, grad, a.array<T>("projected"), a.array<T>("eigenvalues"),
                                      a.array<T>("eigenvectors"), p, a.array<T>("rho"),
                                      a.real("eps"), a.output<In>("out_dx", count)});
  }
  throw emulation::Error("no such stage");
}

template <class In, class T>
void whole(Arguments& a) {
  Emulator device{a.order()};
  const Layout s = layout(a);
  const int64_t G = s.groups, D = s.width, kind = a.integer("kind");
  const auto count = static_cast<std::size_t>(s.numel()), C = static_cast<std::size_t>(s.channels);
  const auto matrices = static_cast<std::size_t>(G * D * D);
  const auto spectral = [&](std::size_t n) { return kind == 2 ? std::size_t{0} : n; };
  if (is(a, "whiten_forward")) {
    const int64_t method = a.integer("shrink_method");
    const auto groups = static_cast<std::size_t>(method != 0 ? G : 0);
    run_whiten_forward(
        device,
        WhitenForward<In, T>{
            s, a.array<In>("x"), a.array<T>("gamma"), a.array<T>("beta"), a.array<T>("row_weight"),
            a.array<T>("running_covariance"), a.real("batch_weight"), a.real("eps"), kind, method,
            a.real("shrink_value"), a.array<T>("start"), a.output<In>("out_y", count),
            a.output<T>("out_mean", C), a.output<T>("out_covariance", matrices),
            a.output<T>("out_eigenvalues", spectral(C)),
            a.output<T>("out_basis", spectral(matrices)), a.output<T>("out_matrix", matrices),
            a.output<T>("out_rho", groups)});
    return;
  }
  run_whiten_backward(
      device,
      WhitenBackward<In, T>{s, a.array<In>("grad"), a.array<In>("x"), a.array<T>("mean"),
                            a.array<T>("eigenvalues"), a.array<T>("basis"), a.array<T>("matrix"),
                            a.array<T>("gamma"), a.array<T>("rho"), a.array<T>("row_weight"),
                            a.real("batch_weight"), kind, a.output<In>("out_dx", count),
                            a.output<T>("out_grad_gamma", C), a.output<T>("out_grad_sum", C)});
}

template <class T>
void of_matrices(Arguments& a) {
  Emulator device{a.order()};
  const int64_t G = a.integer("groups"), D = a.integer("width"), kind = a.integer("kind");
  const auto matrices = static_cast<std::size_t>(G * D * D), C = static_cast<std::size_t>(G * D);
  if (is(a, "backward_matrix")) {
    run_backward_matrix(
        device,
        BackwardMatrix<T>{G, D, a.array<T>("cross"), a.array<T>("eigenvalues"), a.array<T>("basis"),
                          a.array<T>("matrix"), a.array<T>("gamma"), a.array<T>("rho"),
                          a.real("batch_weight"), kind, a.output<T>("out_inner", matrices),
                          a.output<T>("out_grad_gamma", C)});
    return;
  }
  const auto spectral = [&](std::size_t n) { return kind == 2 ? std::size_t{0} : n; };
  T* const eigenvalues = a.output<T>("out_eigenvalues", spectral(C));
  T* const basis = a.output<T>("out_basis", spectral(matrices));
  T* const matrix = a.output<T>("out_matrix", matrices);
  if (a.has("spectrum")) {  // the eigensystem is given
    std::copy_n(a.array<T>("basis"), G * D * D, basis);
    emulation::GlobalMemory::instance().filled(basis);
    run_matrix<Emulator, T>(device, G, D, a.array<T>("spectrum"), basis, a.array<T>("rho"),
                            a.real("eps"), kind, eigenvalues, matrix);
  } else {
    run_factor(device, Factor<T>{G, D, a.array<T>("covariance"), a.array<T>("running_covariance"),
                                 a.array<T>("rho"), a.real("batch_weight"), a.real("eps"), kind,
                                 a.array<T>("start"), eigenvalues, basis, matrix});
  }
}

template <class In, class T>
void run(Arguments& a) {
  is(a, "whiten_forward") || is(a, "whiten_backward") ? whole<In, T>(a) : of_rows<In, T>(a);
}

template <class In>
[[maybe_unused]] void run(Arguments& a) {
  a.integer("double_precision") != 0 ? run<In, double>(a) : run<In, float>(a);
}

void run(Arguments& a) {
  const bool matrices = is(a, "backward_matrix") || is(a, "factor");
#ifdef __SANITIZE_THREAD__  // barriers are the same for all types, and time to compile is not
  matrices ? of_matrices<float>(a) : run<float, float>(a);
#else
  if (matrices) {
    return a.integer("double_precision") != 0 ? of_matrices<double>(a) : of_matrices<float>(a);
  }
  const std::string type = a.type(a.has("x") ? "x" : a.has("grad") ? "grad" : "out_dtype");
  if (type == "f16") return run<Half>(a);
  if (type == "bf16") return run<BFloat16>(a);
  if (type == "f32") return run<float>(a);
  run<double, double>(a);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  return emulation::drive(argc, argv, [](Arguments& a) {
    most_chunks = a.integer("most_chunks", kMostChunks);
    enough_blocks = static_cast<unsigned>(a.integer("enough_blocks", kEnoughBlocks));
    of_a_block = a.integer("shared_limit", of_a_block);
    run(a);
    *a.output<int64_t>("out_launches", 1) = launches;
  });
}
