// What the machine knows of an H100 SXM: every constant of the model, and where it is from.
//
// [guide]   CUDA C++ Programming Guide: limits, and throughput of arithmetic instructions, of
//           compute capability 9.0
// [paper]   NVIDIA H100 Tensor Core GPU Architecture (white paper): units, sizes, bandwidths
// [luo]     Luo et al., Benchmarking and dissecting the Nvidia Hopper GPU architecture,
//           arXiv:2402.13499: latencies
// [huerta]  Huerta et al., Analyzing modern NVIDIA GPU cores, arXiv:2503.20481: of Ampere
// assumed   no source: the first measurements calibrate these (CONTRIBUTING.md says how)
#pragma once

#include <cstdint>

namespace machine {

struct H100 {
  // The whole device
  static constexpr int multiprocessors = 132;   // [paper]
  static constexpr double gigahertz = 1.755;    // assumed: it boosts to 1.98
  static constexpr double dram_bytes = 1909;    // a cycle, [paper]: 3.35 TB/s
  static constexpr double l2_bytes = 3100;      // a cycle, all together: assumed, 5.5 TB/s
  static constexpr int64_t l2_size = 50 << 20;  // [paper]
  static constexpr double launch_us = 1.2;      // between kernels of a graph: assumed
  // One multiprocessor
  static constexpr int schedulers = 4;           // [paper]
  static constexpr int registers = 65536;        // [guide]
  static constexpr int register_unit = 256;      // of a warp's, [guide]
  static constexpr int warps = 64;               // [guide]
  static constexpr int blocks = 32;              // [guide]
  static constexpr int shared_size = 228 << 10;  // [guide]
  static constexpr int shared_reserved = 1024;   // the driver's, of every block: [guide]
  static constexpr int l1_size = 256 << 10;      // with shared memory: [paper]
  static constexpr double l2_port_bytes = 64;    // a cycle: assumed
  static constexpr int block_start = 300;        // cycles until a block's warps run: assumed
  // Cycles that an instruction of a warp keeps its unit of a scheduler busy
  static constexpr int fma = 2;      // one of two units, 128 lanes a cycle together: [guide]
  static constexpr int imad = 2;     // the first of them alone, 64: [guide]
  static constexpr int alu = 2;      // 64: [guide]
  static constexpr int fp64 = 2;     // 64: [guide]
  static constexpr int special = 8;  // MUFU and conversions, 16: [guide]
  static constexpr int uniform = 2;  // assumed
  static constexpr int memory = 4;   // 8 load/store units, [paper]; shuffles pass them, too
  // Memory instructions of a scheduler that wait for those, and cycles of work that may wait for
  // shared memory behind them
  static constexpr int queue = 4;     // [huerta]
  static constexpr int backlog = 24;  // assumed
  // Cycles of the shared memory and L1 of the multiprocessor, for all schedulers
  static constexpr int wavefront = 1;  // 128 bytes: [guide]
  static constexpr int shuffle = 1;    // 32 lanes: [guide]
  // Cycles until a result is there, where a scoreboard tells
  static constexpr int lds = 29;          // [luo]
  static constexpr int l1_hit = 41;       // [luo]
  static constexpr int l2_hit = 263;      // [luo]
  static constexpr int dram = 479;        // [luo]
  static constexpr int shfl = 24;         // assumed
  static constexpr int mufu = 24;         // assumed; conversions, too
  static constexpr int fp64_result = 10;  // assumed
  static constexpr int constant = 40;     // LDC: assumed
  static constexpr int system = 25;       // S2R, S2UR, B2R: assumed
  static constexpr int vote = 12;         // of the rest: assumed
  static constexpr int operands = 10;     // until a memory instruction has read them: [huerta]
  // Control flow
  static constexpr int barrier = 25;  // from the last arrival on: assumed
  static constexpr int branch = 4;    // of a taken one, beyond its stall: assumed
  static constexpr int converge = 4;  // BSYNC and WARPSYNC that waited: assumed
  // Code: each scheduler holds some and prefetches what follows ([huerta]); what it lacks comes
  // from the multiprocessor's cache, where a launch finds what the one before it left.
  static constexpr int code_lines = 128;  // of 128 bytes: assumed
  static constexpr int code_miss = 20;    // of a branch to a line that is not there: assumed
};

}  // namespace machine
