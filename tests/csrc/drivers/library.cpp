// The kernels around the library's solvers: what it is given, and what becomes of its results.
#include "cuda/library.cuh"

#include "cuda/cholesky.cuh"
#include "emulation/driver.h"

namespace {

using namespace fastwhiten::cuda;

template <class T>
void run(emulation::Arguments& a) {
  const int64_t B = a.integer("batch"), D = a.integer("width");
  const auto blocks = static_cast<unsigned>(B);
  const auto count = static_cast<std::size_t>(B * D * D), matrices = static_cast<std::size_t>(B);
  const auto elements = static_cast<unsigned>((B * D * D + 255) / 256);
  const T* const from = a.array<T>("a");
  switch (a.integer("kernel")) {
    case 0:
      return emulation::launch(guard_kernel<T>, dim3(blocks), dim3(256), 0, a.order(), D, from,
                               a.output<T>("guarded", count),
                               a.output<int32_t>("finite", matrices));
    case 1:  // as the library's are: columns lie one after another
      return emulation::launch(
          normalize_kernel<T>,
          dim3(static_cast<unsigned>((B * D * 32 + kNormalizeThreads - 1) / kNormalizeThreads)),
          dim3(kNormalizeThreads), 0, a.order(),
          NormalizeArguments<T>{B, D, D * D, 1, D, from, a.array<T>("values"),
                                a.array<int32_t>("finite"), a.output<T>("vectors", count),
                                a.output<T>("out_values", static_cast<std::size_t>(B * D))});
    case 2:
      return emulation::launch(
          shift_kernel<T>, dim3(blocks), dim3(256), kReduceWords * sizeof(T), a.order(),
          ShiftArguments<T>{B, D, from, a.array<T>("rho"), static_cast<T>(a.real("eps")),
                            a.output<T>("shifted", count), a.output<T>("identity", count)});
    default:
      return emulation::launch(flip_or_nan_kernel<T>, dim3(elements), dim3(256), 0, a.order(), B, D,
                               from, a.array<int32_t>("info"), a.output<T>("matrix", count));
  }
}

}  // namespace

int main(int argc, char** argv) {
  return emulation::drive(argc, argv, [](emulation::Arguments& a) {
    a.type("a") == "f64" ? run<double>(a) : run<float>(a);
  });
}
