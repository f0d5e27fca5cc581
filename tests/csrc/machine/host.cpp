// See host.h. A source of its own: the machine is optimised, programs that launch are not.
#include "machine/host.h"

#include <sys/mman.h>

#include <cstdlib>
#include <fstream>

#include "machine/report.h"

namespace machine {
namespace {

// Address space for arrays, in use only where one is written to.
constexpr uint64_t kRegion = uint64_t{0x10} << 40, kRegionBytes = uint64_t{64} << 30;
constexpr uint64_t kAlignment = 512;  // as PyTorch's allocator aligns

struct Host {
  Arrays arrays;
  L2 l2;
  uint64_t end = kRegion;  // of what is taken
  std::string folder;
  bool has_program = false;
  bool alone = false;  // blocks of the other multiprocessors do not run
  std::map<std::string, Kernel> program;

  Host() {
    const char* const name = std::getenv("FASTWHITEN_MACHINE");
    if (name == nullptr) throw Error("expected FASTWHITEN_MACHINE to name a folder");
    folder = name;
    void* const region =
        mmap(reinterpret_cast<void*>(kRegion), kRegionBytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (region != reinterpret_cast<void*>(kRegion)) throw Error("cannot map memory for arrays");
    alone = std::getenv("FASTWHITEN_MACHINE_ALONE") != nullptr;
    has_program = std::ifstream(folder + "/program").good();
    if (has_program) program = load_program(folder + "/program", resolve);
  }
  static Host& instance() {
    static Host host;
    return host;
  }
};

}  // namespace

void* allocate(std::size_t bytes, bool in_l2) {
  Host& host = Host::instance();
  const uint64_t begin = host.end;
  host.end += (bytes / kAlignment + 1) * kAlignment;
  if (host.end > kRegion + kRegionBytes) throw Error("expected arrays of 64 GiB at most");
  host.arrays.add(begin, bytes);
  for (uint64_t at = begin; in_l2 && at < begin + bytes; at += kSector) host.l2.touch(at / kSector);
  return reinterpret_cast<void*>(begin);
}

void release(const void* first) {
  Host::instance().arrays.remove(reinterpret_cast<uint64_t>(first));
}

void launch(const char* kernel, const uint32_t (&grid)[3], const uint32_t (&block)[3],
            int64_t shared, const std::vector<uint8_t>& parameters) {
  Host& host = Host::instance();
  std::ofstream file(host.folder + "/report", std::ios::app);
  Kernel unknown;
  unknown.name = kernel;
  Launch launch;
  launch.kernel = &unknown;
  launch.shared = shared;
  for (std::size_t i = 0; i < 3; ++i) {
    launch.grid[i] = grid[i];
    launch.block[i] = block[i];
  }
  if (!host.has_program) return report(file, launch);
  const auto found = host.program.find(kernel);
  if (found == host.program.end()) throw Error(std::string(kernel) + " is not compiled");
  launch.kernel = &found->second;
  set_sizes(launch);
  std::memcpy(launch.constants.bytes.data() + Constants::kParameters, parameters.data(),
              parameters.size());
  Simulation simulation(host.arrays, host.l2);
  const Outcome outcome = simulation.run(launch, !host.alone);
  report(file, launch);
  report(file, launch, outcome);
}

}  // namespace machine
