// The kernels around the library's solvers: what it is given, and what becomes of its results.
#include "cuda/library.cuh"

#include "emulator/driver.h"

namespace {

using namespace fastwhiten::cuda;

struct Emulator {
  emulation::Order order;

  template <class... Parameters, class... Values>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
              const Values&... values) {
    emulation::launch(kernel, dim3(static_cast<unsigned>(blocks)),
                      dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(shared), order,
                      values...);
  }
};

template <class T>
void run(emulation::Arguments& a) {
  Emulator device{a.order()};
  const int64_t B = a.integer("batch"), D = a.integer("width");
  const auto count = static_cast<std::size_t>(B * D * D), matrices = static_cast<std::size_t>(B);
  const T* const from = a.array<T>("a");
  switch (a.integer("kernel")) {
    case 0:
      return run_guard(device, B, D, from, a.output<T>("guarded", count),
                       a.output<int32_t>("finite", matrices));
    case 1:  // as the library's are: columns lie one after another
      return run_normalize(
          device,
          NormalizeArguments<T>{B, D, D * D, 1, D, from, a.array<T>("values"),
                                a.array<int32_t>("finite"), nullptr, a.output<T>("vectors", count),
                                a.output<T>("out_values", static_cast<std::size_t>(B * D))});
    case 2:
      return run_shift(
          device, ShiftArguments<T>{B, D, from, a.array<T>("rho"), static_cast<T>(a.real("eps")),
                                    a.output<T>("shifted", count), a.output<T>("identity", count)});
    default:
      return run_flip_or_nan(
          device, FlipArguments<T>{B, D, a.integer("stride_batch"), a.integer("stride_row"),
                                   a.integer("stride_column"), from, a.array<int32_t>("info"),
                                   a.output<T>("matrix", count)});
  }
}

}  // namespace

int main(int argc, char** argv) {
  return emulation::drive(argc, argv, [](emulation::Arguments& a) {
    a.type("a") == "f64" ? run<double>(a) : run<float>(a);
  });
}
