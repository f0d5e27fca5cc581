// What the machine knows of an H100 SXM: every constant of the model, and where it is from.
//
// [guide]   CUDA C++ Programming Guide, throughput of arithmetic instructions, capability 9.0
// [luo]     Luo et al., Benchmarking and dissecting the Nvidia Hopper GPU architecture via
//           microbenchmarking, arXiv:2402.13499: latencies of an H100
// [paper]   NVIDIA H100 Tensor Core GPU Architecture (white paper): units, sizes, bandwidths
// [huerta]  Huerta et al., Analyzing modern NVIDIA GPU cores, arXiv:2503.20481
// assumed   no source: the first measurements calibrate these
#pragma once

#include <cstdint>

namespace machine {

struct H100 {
  // The whole device
  static constexpr int multiprocessors = 132;   // [paper]
  static constexpr double gigahertz = 1.755;    // [paper] boost clock of the SXM part
  static constexpr double dram_bytes = 1909;    // a cycle: [paper] 3.35 TB/s at that clock
  static constexpr double l2_bytes = 3100;      // a cycle, all together: assumed, 5.5 TB/s
  static constexpr int64_t l2_size = 50 << 20;  // [paper]
  static constexpr double launch_us = 2.5;      // from launch to launch on a stream: assumed
  // One multiprocessor
  static constexpr int schedulers = 4;           // [paper]
  static constexpr int registers = 65536;        // [guide]
  static constexpr int register_unit = 256;      // [guide] of a warp's
  static constexpr int warps = 64, blocks = 32;  // [guide]
  static constexpr int shared_size = 228 << 10;  // [guide]
  static constexpr int shared_reserved = 1024;   // [guide] the driver's, of every block
  static constexpr int l1_size = 256 << 10;      // [paper] with shared memory
  static constexpr double l2_port_bytes = 64;    // a cycle: assumed
  static constexpr int block_start = 300;        // cycles until a block's warps run: assumed
  // Cycles that a warp's instruction keeps its pipe of a scheduler busy
  static constexpr int fma = 2;      // one of two pipes: 128 lanes a cycle [guide]
  static constexpr int imad = 2;     // the first of them alone: 64 [guide]
  static constexpr int alu = 2;      // 64 [guide]
  static constexpr int fp64 = 2;     // 64 [guide]
  static constexpr int special = 8;  // MUFU and conversions: 16 [guide]
  static constexpr int uniform = 2;  // assumed
  static constexpr int memory = 4;   // 8 load/store units [paper]; shuffles pass them, too
  // Memory instructions of a scheduler that wait for those units: [huerta], of Ampere
  static constexpr int queue = 4;
  static constexpr int backlog = 24;  // cycles of work that may wait for shared memory: assumed
  // Cycles of the multiprocessor's shared memory and L1, for all schedulers
  static constexpr int wavefront = 1;  // 128 bytes [guide]
  static constexpr int shuffle = 1;    // 32 lanes a cycle [guide]
  // Cycles until the result is there
  static constexpr int lds = 29;          // [luo]
  static constexpr int l1_hit = 41;       // [luo]
  static constexpr int l2_hit = 263;      // [luo]
  static constexpr int dram = 479;        // [luo]
  static constexpr int shfl = 24;         // assumed
  static constexpr int mufu = 24;         // assumed, and conversions
  static constexpr int fp64_result = 10;  // where a scoreboard is used: assumed
  static constexpr int constant = 40;     // LDC: assumed
  static constexpr int system = 25;       // S2R, S2UR, B2R, R2UR: assumed
  static constexpr int vote = 12;         // where a scoreboard is used: assumed
  static constexpr int operands =
      10;                             // until a memory instruction has read its registers: [huerta]
  static constexpr int barrier = 25;  // from the last arrival on: assumed
  static constexpr int branch = 4;    // of a taken one, beyond its stall: assumed
  static constexpr int converge = 4;  // BSYNC, WARPSYNC that waited: assumed
  static constexpr int line_miss = 40;  // first use of 128 bytes of code, with prefetch: assumed
};

}  // namespace machine
