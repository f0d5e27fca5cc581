// cuSOLVER found, and called as on a device, in a program that brings its own.
#include "cuda/cusolver.h"

#include <thread>

#include "cuda/library.cuh"
#include "emulator/driver.h"
#include "fake_cusolver.h"

namespace {

using namespace fastwhiten::cuda;

// The Device of cusolver.h and library.cuh.
struct Emulator {
  struct CaptureRelaxed {
    CaptureRelaxed() { ++fake::relaxed; }
    ~CaptureRelaxed() { --fake::relaxed; }
  };
  emulation::Order order;
  int64_t stream_number;

  int32_t index() const { return 0; }
  void* stream() const { return reinterpret_cast<void*>(stream_number); }
  template <class P>
  emulation::GlobalArray<P> allocate(int64_t count) {
    return emulation::allocate_global<P>(static_cast<std::size_t>(count), "scratch");
  }
  template <class... Parameters, class... Values>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
              const Values&... values) {
    emulation::launch(kernel, dim3(static_cast<unsigned>(blocks)),
                      dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(shared), order,
                      values...);
  }
};

// a [B, D, D] -> values, vectors, with the kernels around; `times` times, on two streams in turn.
template <class T>
void solve(emulation::Arguments& a, Cusolver& cusolver) {
  const int64_t B = a.integer("batch"), D = a.integer("width");
  const auto count = static_cast<std::size_t>(B * D);
  T* const values = a.output<T>("values", count);
  T* const vectors = a.output<T>("vectors", count * static_cast<std::size_t>(D));
  for (int64_t i = 0; i < a.integer("times", 1); ++i) {
    Emulator device{a.order(), 1 + i % 2};
    run_batched_eigh(device, cusolver, B, D, a.array<T>("a"), values, vectors);
  }
}

// a [B, D, D] in place, values [B, D] and info [B], without the kernels: `threads` parts of it at a
// time, each a call of a thread of its own, twice.
void solve_in_threads(emulation::Arguments& a, Cusolver& cusolver, int64_t threads) {
  const int64_t B = a.integer("batch"), D = a.integer("width"), part = B / (2 * threads);
  double* const matrices = a.array<double>("a");
  double* const values = a.output<double>("values", static_cast<std::size_t>(B * D));
  int32_t* const info = a.output<int32_t>("info", static_cast<std::size_t>(B));
  std::mutex mutex;
  std::string failed;
  fake::meeting.wanted = threads;
  for (int64_t half = 0; half < 2; ++half) {
    std::vector<std::thread> running;
    for (int64_t t = 0; t < threads; ++t) {
      running.emplace_back([&, b = (half * threads + t) * part, stream = 1 + t] {
        Emulator device{{}, stream};
        try {
          cusolver.eigh(device, part, D, matrices + b * D * D, values + b * D, info + b);
        } catch (const std::runtime_error& error) {
          const std::lock_guard<std::mutex> lock(mutex);
          failed = error.what();
        }
      });
    }
    for (std::thread& one : running) one.join();
  }
  if (!failed.empty()) throw emulation::Error(failed);
}

void run(emulation::Arguments& a) {
  static const char* const functions[] = {"", "cusolverDnCreate", "cusolverDnCreateParams",
                                          "cusolverDnXsyevBatched_bufferSize",
                                          "cusolverDnXsyevBatched"};
  fake::version = static_cast<int>(a.integer("version", fake::version));
  fake::fails = functions[a.integer("fails", 0)];
  fake::fails_with = static_cast<int>(a.integer("status", 0));
  // This program; or one library that defines nothing of it; or none.
  void* const libraries[] = {dlopen(nullptr, RTLD_NOW), dlopen("libm.so.6", RTLD_NOW), nullptr};
  Cusolver cusolver(libraries[a.integer("library", 0)]);
  if (!cusolver.usable()) throw emulation::Error("missing: " + cusolver.missing());
  const int64_t threads = a.integer("threads", 0);
  const auto once = [&] {
    a.type("a") == "f64" ? solve<double>(a, cusolver) : solve<float>(a, cusolver);
  };
  try {
    threads > 0 ? solve_in_threads(a, cusolver, threads) : once();
  } catch (const emulation::Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    once();  // what failed once leaves nothing behind
    throw emulation::Error(std::to_string(fake::handles.size()) + " handles: " + error.what());
  }
  auto* const batches = a.output<int64_t>("batches", fake::batches.size());
  std::copy(fake::batches.begin(), fake::batches.end(), batches);
  auto* const version = a.output<int32_t>("version_text", cusolver.version().size());
  std::copy(cusolver.version().begin(), cusolver.version().end(), version);
  *a.output<int64_t>("handles", 1) = static_cast<int64_t>(fake::handles.size());
}

}  // namespace

int main(int argc, char** argv) { return emulation::drive(argc, argv, run); }
