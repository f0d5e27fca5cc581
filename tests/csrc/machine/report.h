// What came of a launch, as lines of "key value".
#pragma once

#include <algorithm>
#include <ostream>

#include "simulate.h"

namespace machine {

inline void set_sizes(Launch& launch) {
  for (std::size_t i = 0; i < 3; ++i) {
    std::memcpy(launch.constants.bytes.data() + 4 * i, &launch.block[i], 4);
    std::memcpy(launch.constants.bytes.data() + 12 + 4 * i, &launch.grid[i], 4);
  }
}

inline void report(std::ostream& out, const Launch& launch) {
  out << "kernel " << launch.kernel->name << '\n'
      << "blocks " << launch.blocks() << '\n'
      << "threads " << launch.threads() << '\n'
      << "shared " << launch.shared + launch.kernel->shared << '\n';
}

inline void report(std::ostream& out, const Launch& launch, const Outcome& o) {
  const double cycles = static_cast<double>(std::max<int64_t>(o.cycles, 1));
  const double slots = cycles * H100::schedulers;
  const auto share = [&](double part) { return part / slots; };
  out << "registers " << launch.kernel->registers << '\n'
      << "resident " << o.resident << '\n'
      << "timed_blocks " << o.blocks_run << '\n'
      << "cycles " << o.cycles << '\n'
      << "launch_us " << H100::launch_us << '\n'
      << "us " << cycles / H100::gigahertz / 1000 << '\n'
      << "floor_bytes_us "
      << static_cast<double>(o.traffic.dram * kSector) / o.dram_rate / H100::gigahertz / 1000
      << '\n'
      << "floor_arithmetic_us " << o.arithmetic / H100::gigahertz / 1000 << '\n'
      << "issued " << o.issued << '\n'
      << "issue_share " << share(static_cast<double>(o.issued)) << '\n';
  const char* const pipes[] = {"fma", "imad", "alu", "fp64", "special", "uniform", "memory"};
  for (std::size_t i = 0; i < 7; ++i) {
    const double per = i == 0 ? 2.0 : 1.0;  // two pipes take float's
    out << pipes[i] << "_share " << share(static_cast<double>(o.busy[i])) / per << '\n';
  }
  const Traffic& t = o.traffic;
  out << "shared_share " << static_cast<double>(t.wavefronts + t.shuffles) / cycles << '\n'
      << "wavefronts " << t.wavefronts << '\n'
      << "conflicts " << t.conflicts << '\n'
      << "shuffles " << t.shuffles << '\n'
      << "requests " << t.requests << '\n'
      << "sectors " << t.sectors << '\n'
      << "l1_hits " << t.l1_hits << '\n'
      << "l2_hits " << t.l2_hits << '\n'
      << "dram " << t.dram << '\n';
  std::array<int64_t, kReasons> waited{};
  for (const Place& p : o.places) {
    for (std::size_t r = 0; r < kReasons; ++r) waited[r] += p.waited[r];
  }
  for (int r = 0; r < kReasons; ++r) {
    out << "waited_" << reason_name(r) << ' ' << waited[static_cast<std::size_t>(r)] << '\n';
  }
  for (const auto& [at, r] : o.rounds) {
    if (r.gaps.empty()) continue;
    auto gaps = r.gaps;
    std::sort(gaps.begin(), gaps.end());
    int64_t sum = 0;
    for (const int64_t g : gaps) sum += g;
    out << "rounds " << launch.kernel->code[static_cast<std::size_t>(at)].line << ' '
        << launch.kernel->code[static_cast<std::size_t>(at)].address << ' ' << r.count << ' '
        << gaps[gaps.size() / 2] << ' ' << sum / static_cast<int64_t>(gaps.size()) << '\n';
  }
  for (std::size_t i = 0; i < o.places.size(); ++i) {
    const Place& p = o.places[i];
    if (p.issued == 0) continue;
    out << "place " << launch.kernel->code[i].address << ' ' << launch.kernel->code[i].line << ' '
        << launch.kernel->code[i].name << ' ' << p.issued << ' ' << p.lanes;
    for (const int64_t w : p.waited) out << ' ' << w;
    out << '\n';
  }
}

}  // namespace machine
