// See host.h. A source of its own: the machine is optimised, programs that launch are not.
#include "machine/host.h"

#include <cstdlib>
#include <fstream>

#include "machine/report.h"

namespace machine {
namespace {

struct Host {
  Arrays arrays;
  L2 l2;
  std::string folder;
  bool has_program = false;
  bool alone = false;  // blocks of the other multiprocessors do not run
  std::map<std::string, Kernel> program;

  Host() {
    const char* const name = std::getenv("FASTWHITEN_MACHINE");
    if (name == nullptr) throw Error("expected FASTWHITEN_MACHINE to name a folder");
    folder = name;
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

void add_array(const void* first, std::size_t bytes, bool in_l2) {
  Host& host = Host::instance();
  host.arrays.add(first, bytes);
  const auto begin = reinterpret_cast<uint64_t>(first);
  for (uint64_t at = begin; in_l2 && at < begin + bytes; at += kSector) host.l2.touch(at / kSector);
}

void remove_array(const void* first) { Host::instance().arrays.remove(first); }

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
