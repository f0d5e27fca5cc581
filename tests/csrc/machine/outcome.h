// What is counted while a launch runs.
#pragma once

#include "memory.h"

namespace machine {

// Why a warp did not issue: what it waited for before an instruction.
enum Reason : int {
  kStalls,      // its own stall count
  kShortBoard,  // shared memory, shuffles, special functions, constants
  kLongBoard,   // global memory
  kPipeBusy,    // a pipe, or the queue of shared memory
  kAtBarrier,
  kBranches,  // taken branches, waiting for other lanes, code not yet there
  kNotSelected,
  kReasons
};
inline const char* reason_name(int r) {
  static const char* const names[] = {"stall",   "short",  "long", "pipe",
                                      "barrier", "branch", "other"};
  return names[r];
}

struct Place {                             // what happened at one instruction
  int64_t issued = 0;                      // warp instructions
  int64_t lanes = 0;                       // ... in lanes
  std::array<int64_t, kReasons> waited{};  // cycles before it, of warps
};

struct Rounds {  // a barrier's releases
  int64_t count = 0, last = 0;
  std::vector<int64_t> gaps;
};

struct Outcome {
  int64_t cycles = 0, issued = 0;
  double arithmetic = 0;  // cycles that all units would need for the lanes that do any
  int blocks_run = 0, resident = 0;
  std::array<int64_t, 8> busy{};  // cycles of work by pipe, over the schedulers
  double dram_rate = 1;           // bytes a cycle that this multiprocessor has of it
  Traffic traffic;
  std::vector<Place> places;
  std::map<int, Rounds> rounds;  // by instruction
};

}  // namespace machine
