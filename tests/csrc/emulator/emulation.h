// Runs CUDA kernels on the CPU, for tests: platform.cuh includes this file instead of CUDA's
// headers when FASTWHITEN_EMULATE is defined.
//
//   emulation::launch(kernel, grid, block, shared_bytes, order, arguments...);
//
// runs every thread of a block as a fibre, blocks one after another, and throws emulation::Error
// for a divergent barrier, a shuffle that reads a lane which takes no part, an index out of shared
// memory, a read of what nobody wrote, or a race on shared memory. Global memory is the process's
// own: AddressSanitizer checks its bounds, and in a program compiled with -fsanitize=thread (not
// linked with it) global_memory.h finds races and reads of what nobody wrote. Not modelled: memory
// ordering weaker than the program's, bank conflicts, time.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <utility>

#include "block.h"
#include "global_memory.h"
#include "omission.h"
#include "shared_memory.h"
#include "types.h"

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulation {

inline constexpr std::size_t kSharedBytesLimit = 227 << 10;  // of a block on sm_90

inline void Block::set_thread_index(dim3 index) { threadIdx = index; }

// The name of a kernel, for messages; empty in a program that was not linked with -rdynamic.
template <class F>
std::string kernel_name(F* kernel) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(kernel), &info) == 0 || info.dli_sname == nullptr) return "";
  int status = 0;
  char* const text = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : info.dli_sname;
  std::free(text);
  return name.substr(0, name.find('('));
}

inline void check_launch(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) throw Error("launch: bad block size");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535u ||
      grid.z > 65535u) {
    throw Error("launch: bad grid size");
  }
  if (shared_bytes > kSharedBytesLimit) throw Error("launch: too much shared memory");
}

inline void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, Order order,
                     void (*body)(void*), void* context) {
  check_launch(grid, block, shared_bytes);
  GlobalMemory::instance().begin_launch();
  gridDim = grid;
  blockDim = block;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = order.kind == Order::kReversed ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    Arena::instance().reset(shared_bytes);
    GlobalMemory::instance().begin_block();
    Block::instance().run(block, order, body, context);
  }
  GlobalMemory::instance().end_launch();
}

#if defined(FASTWHITEN_MACHINE)
// The compiled kernel instead, on the machine.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Order,
            const Arguments&... arguments) {
  check_launch(grid, block, shared_bytes);
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(kernel), &info) == 0 || info.dli_sname == nullptr) {
    throw Error("a kernel has no name: link with -rdynamic");
  }
  try {
    machine::launch(info.dli_sname, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
                    static_cast<std::int64_t>(shared_bytes),
                    machine::packed(static_cast<std::decay_t<Parameters>>(arguments)...));
  } catch (const std::exception& error) {
    throw Error(kernel_name(kernel) + ": " + error.what());
  }
}
#else
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            Order order, const Arguments&... arguments) {
  auto body = [&] { kernel(arguments...); };
  try {
    run_grid(
        grid, block, shared_bytes, order, [](void* b) { (*static_cast<decltype(body)*>(b))(); },
        &body);
  } catch (const Error& error) {
    throw Error(kernel_name(kernel) + ": block " + std::to_string(blockIdx.x) + "," +
                std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + ": " +
                error.what());
  }
}
#endif

template <class T>
T shuffle(const char* operation, Site site, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Block::instance().meet(operation, site, mask, bits, source, false).value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return Block::instance().current % kWarp; }

inline unsigned ballot(const char* operation, Site site, unsigned mask, bool predicate) {
  return Block::instance().meet(operation, site, mask, 0, lane(), predicate).ballot;
}

}  // namespace emulation

// The place of a call: evaluated where the default argument is used.
#define EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_SITE) {
  if (emulation::left_out(file, line)) return;
  emulation::Block::instance().barrier("__syncthreads", {file, line}, false);
}
inline int __syncthreads_count(int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  return emulation::Block::instance().barrier("__syncthreads_count", {file, line}, predicate != 0);
}
inline int __syncthreads_or(int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  return emulation::Block::instance().barrier("__syncthreads_or", {file, line}, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  auto& block = emulation::Block::instance();
  return block.barrier("__syncthreads_and", {file, line}, predicate != 0) == block.threads;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return;
  emulation::ballot("__syncwarp", {file, line}, mask, false);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  return emulation::ballot("__ballot_sync", {file, line}, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  return emulation::ballot("__any_sync", {file, line}, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return predicate != 0;
  return emulation::ballot("__all_sync", {file, line}, mask, predicate == 0) == 0;
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return value;
  return emulation::Block::instance()
      .meet("__reduce_max_sync", {file, line}, mask, value, emulation::lane(), false)
      .most;
}

// Sources as in CUDA's guide: inside segments of `width` lanes; where an offset leaves the segment,
// a lane keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return value;
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle("__shfl_sync", {file, line}, mask, value,
                            first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return value;
  const int self = emulation::lane(), source = self ^ lanes;
  return emulation::shuffle("__shfl_xor_sync", {file, line}, mask, value,
                            source > (self | (width - 1)) ? self : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return value;
  const int self = emulation::lane(), source = self + static_cast<int>(delta);
  return emulation::shuffle("__shfl_down_sync", {file, line}, mask, value,
                            source > (self | (width - 1)) ? self : source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_SITE) {
  if (emulation::left_out(file, line)) return value;
  const int self = emulation::lane(), source = self - static_cast<int>(delta);
  return emulation::shuffle("__shfl_up_sync", {file, line}, mask, value,
                            source < (self & ~(width - 1)) ? self : source);
}
