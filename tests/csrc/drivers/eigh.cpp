// The eigensolver through its launch table: a, start [B, D, D] in, values, vectors, sweeps out.
#include "cuda/eigh.cuh"

#include "emulator/driver.h"

namespace {

template <class T>
void run_typed(emulation::Arguments& a) {
  using fastwhiten::cuda::EighProblem;
  const int64_t B = a.integer("B"), D = a.integer("D");
  fastwhiten::cuda::few_matrices = a.integer("few_matrices", fastwhiten::cuda::kFewMatrices);
  const auto size = static_cast<std::size_t>(B * D);
  const EighProblem<T> problem = {B,
                                  D,
                                  a.array<T>("a"),
                                  a.output<T>("values", size),
                                  a.output<T>("vectors", size * static_cast<std::size_t>(D)),
                                  a.array<T>("start"),
                                  a.output<int32_t>("sweeps", static_cast<std::size_t>(B))};
  const bool done = fastwhiten::cuda::launch_eigh(
      problem, a.integer("shared_limit", 227 << 10),
      [&](auto* kernel, int64_t blocks, int threads, int64_t bytes, const auto& argument) {
        // For warps that take several matrices: a block of threads takes one.
        const int64_t most =
            fastwhiten::cuda::takes_blocks(B, D) ? blocks : a.integer("most_blocks", blocks);
        emulation::launch(kernel, static_cast<unsigned>(blocks < most ? blocks : most),
                          static_cast<unsigned>(threads), static_cast<std::size_t>(bytes),
                          a.order(), argument);
      });
  if (!done) throw emulation::Error("left to the library");
}

void run(emulation::Arguments& a) {
  a.type("a") == "f64" ? run_typed<double>(a) : run_typed<float>(a);
}

}  // namespace

int main(int argc, char** argv) { return emulation::drive(argc, argv, run); }
