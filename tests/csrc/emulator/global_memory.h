// Arrays in global memory, and races on them.
//
// Kernels reach global memory by plain pointers. Where a program is compiled with -fsanitize=thread
// the compiler announces every access by a call, __tsan_read4(address) and the like. The answers
// are here, in place of ThreadSanitizer's library, which knows neither barriers nor warps and
// follows 255 threads at a time: accesses of arrays that were made known are recorded and checked,
// in pieces of two bytes, the rest is passed over. Found are, beyond the races in a block
// (races.h), accesses of two blocks of one launch, one of them a write, and reads of what nobody
// wrote.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#if defined(FASTWHITEN_MACHINE)
#include "machine/host.h"
#endif
#include "races.h"

namespace emulation {

// True while threads of a kernel run, but for the time that an access is looked at.
inline bool watches_global_memory = false;

// Where all arrays lie if accesses are announced: one comparison tells those of other memory.
inline constexpr std::uintptr_t kRegionBytes = std::uintptr_t{1} << 32;
inline std::uintptr_t region_begin = 0;

class GlobalMemory {
 public:
  static GlobalMemory& instance() {
    static GlobalMemory memory;
    return memory;
  }

  // A new array. `written`: it will come with values.
  void* allocate(std::size_t bytes, const std::string& name, bool written) {
#if defined(__SANITIZE_THREAD__)
    if (region_begin == 0) reserve();
    const std::uintptr_t begin = end_;
    end_ += (bytes + kAlignment) / kAlignment * kAlignment;  // at least a byte between two
    if (end_ > region_begin + kRegionBytes) throw std::bad_alloc();
    arrays_.push_back({begin, begin + bytes, name, written, {}});
    arrays_.back().cells.resize((bytes + kPiece - 1) / kPiece);
    return reinterpret_cast<void*>(begin);
#elif defined(FASTWHITEN_MACHINE)
    // What the step before left is still in L2; a layer's input and gradient are not.
    return machine::allocate(bytes, written && name != "x" && name != "grad");
#else
    (void)name, (void)written;
    void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
#endif
  }
  void release(void* first) {
#if defined(__SANITIZE_THREAD__)
    const auto begin = reinterpret_cast<std::uintptr_t>(first);
    arrays_.erase(std::remove_if(arrays_.begin(), arrays_.end(),
                                 [&](const Array& a) { return a.begin == begin; }),
                  arrays_.end());
#elif defined(FASTWHITEN_MACHINE)
    machine::release(first);
#else
    std::free(first);
#endif
  }
  // The host wrote all of a known array.
  void filled(const void* first) {
    for (Array& array : arrays_) {
      if (array.begin == reinterpret_cast<std::uintptr_t>(first)) array.written = true;
    }
  }

  void begin_launch() { block_epochs_.clear(); }
  void begin_block() {
    block_epochs_.push_back(Block::instance().epoch + 1);
    watches_global_memory = true;
  }
  void end_launch() { watches_global_memory = false; }

  // The running thread reads or writes `size` bytes; `code` is where.
  void access(std::uintptr_t address, std::size_t size, bool writes, const void* code) {
    for (Array& array : arrays_) {
      if (address < array.begin || address >= array.end) continue;
      const std::size_t from = address - array.begin;
      for (std::size_t c = from / kPiece; c <= (from + size - 1) / kPiece; ++c) {
        if (c < array.cells.size()) writes ? write(array, c, code) : read(array, c, code);
      }
      return;
    }
  }

 private:
  static constexpr std::uintptr_t kAlignment = 256;  // as cudaMalloc's
  static constexpr std::size_t kPiece = 2;           // no kernel has a type of one byte
  struct Cell {
    Word word;
    std::uint32_t earlier_read = 0;  // epoch of a read by a block before the one that read last
    const void* writer = nullptr;    // code of the last write
    const void* reader = nullptr;    // code of the last read
  };
  struct Array {
    std::uintptr_t begin, end;
    std::string name;
    bool written;
    std::vector<Cell> cells;
  };

  void reserve() {
    void* const memory = mmap(nullptr, kRegionBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    region_begin = end_ = reinterpret_cast<std::uintptr_t>(memory);
  }

  void read(Array& array, std::size_t index, const void* code) {
    Cell& cell = array.cells[index];
    const std::uint32_t wrote = cell.word.write_epoch();
    if (wrote == 0 && !array.written) {
      fail(self() + " reads " + piece(array, index) + ", which nobody wrote, at " + place(code));
    }
    if (other_block(wrote)) {
      race(array, index, block_of(wrote), "wrote", cell.writer, "reads", code);
    }
    const std::uint32_t before = cell.word.read_epoch();
    if (other_block(before)) cell.earlier_read = before;
    if (const int writer = cell.word.read(); writer >= 0) {
      race(array, index, thread(writer), "wrote", cell.writer, "reads", code);
    }
    cell.reader = code;
  }

  void write(Array& array, std::size_t index, const void* code) {
    Cell& cell = array.cells[index];
    const std::uint32_t wrote = cell.word.write_epoch(), read = cell.word.read_epoch();
    if (other_block(wrote)) {
      race(array, index, block_of(wrote), "wrote", cell.writer, "writes", code);
    }
    for (const std::uint32_t epoch : {read, cell.earlier_read}) {
      if (other_block(epoch)) {
        race(array, index, block_of(epoch), "read", cell.reader, "writes", code);
      }
    }
    const char* did = "";
    if (const int other = cell.word.write(did); other >= 0) {
      const bool by_writing = std::strcmp(did, "wrote") == 0;
      race(array, index, thread(other), did, by_writing ? cell.writer : cell.reader, "writes",
           code);
    }
    cell.writer = code;
  }

  // True if the epoch belongs to a block of this launch that ran before the one that runs.
  bool other_block(std::uint32_t epoch) const {
    return epoch >= block_epochs_.front() && epoch < block_epochs_.back();
  }
  std::string block_of(std::uint32_t epoch) const {
    const auto next = std::upper_bound(block_epochs_.begin(), block_epochs_.end(), epoch);
    return "block " + std::to_string(next - block_epochs_.begin()) + " in the order of running";
  }
  static std::string thread(int t) { return "thread " + std::to_string(t); }
  static std::string self() { return thread(Block::instance().current); }
  static std::string piece(const Array& array, std::size_t index) {
    return "byte " + std::to_string(kPiece * index) + " of " + array.name;
  }
  // An address in the program, to be turned into lines of sources by addr2line.
  static std::string place(const void* code) {
    Dl_info info{};
    dladdr(code, &info);
    char text[32];
    std::snprintf(text, sizeof text, "[%#tx]",
                  static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1);
    return text;
  }

  [[noreturn]] void race(const Array& array, std::size_t index, const std::string& before,
                         const char* did, const void* did_at, const char* does, const void* at) {
    fail("race on " + piece(array, index) + ": " + before + " " + did + " it at " + place(did_at) +
         ", " + self() + " " + does + " it at " + place(at) + " with no barrier between");
  }
  [[noreturn]] static void fail(const std::string& message) { Block::instance().fail(message); }

  std::vector<Array> arrays_;
  std::uintptr_t end_ = 0;                   // of what is taken of the region
  std::vector<std::uint32_t> block_epochs_;  // first epoch of every block of this launch so far
};

// Fails unless a vector that is moved `bytes` at a time may begin at p.
inline void check_global_vector(const void* p, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes == 0) return;
  Block& block = Block::instance();
  block.fail("thread " + std::to_string(block.current) +
             " moves a vector of global memory at an address that is no multiple of " +
             std::to_string(bytes));
}

struct FreeGlobal {
  void operator()(void* p) const { GlobalMemory::instance().release(p); }
};
template <class T>
using GlobalArray = std::unique_ptr<T[], FreeGlobal>;

// Scratch in global memory: garbage (every byte 255: NaN).
template <class T>
GlobalArray<T> allocate_global(std::size_t count, const std::string& name) {
  void* const memory = GlobalMemory::instance().allocate(count * sizeof(T), name, false);
  std::memset(memory, 255, count * sizeof(T));
  return GlobalArray<T>(static_cast<T*>(memory));
}

}  // namespace emulation

#if defined(__SANITIZE_THREAD__)
// What gcc and clang call. One program, one file: nobody else defines them.
#define EMULATION_HOOK extern "C" __attribute__((no_sanitize("thread"), used)) void
#define EMULATION_LOOK(p, size, writes)                                            \
  const auto address = reinterpret_cast<std::uintptr_t>(p);                        \
  if (address - ::emulation::region_begin >= ::emulation::kRegionBytes ||          \
      !::emulation::watches_global_memory) {                                       \
    return;                                                                        \
  }                                                                                \
  ::emulation::watches_global_memory = false; /* what follows is announced, too */ \
  ::emulation::GlobalMemory::instance().access(address, size, writes,              \
                                               __builtin_return_address(0));       \
  ::emulation::watches_global_memory = true
#define EMULATION_ACCESSES(size)                                                          \
  EMULATION_HOOK __tsan_read##size(void* p) { EMULATION_LOOK(p, size, false); }           \
  EMULATION_HOOK __tsan_write##size(void* p) { EMULATION_LOOK(p, size, true); }           \
  EMULATION_HOOK __tsan_unaligned_read##size(void* p) { EMULATION_LOOK(p, size, false); } \
  EMULATION_HOOK __tsan_unaligned_write##size(void* p) { EMULATION_LOOK(p, size, true); }
EMULATION_ACCESSES(1)
EMULATION_ACCESSES(2)
EMULATION_ACCESSES(4)
EMULATION_ACCESSES(8)
EMULATION_ACCESSES(16)
EMULATION_HOOK __tsan_read_range(void* p, std::size_t size) { EMULATION_LOOK(p, size, false); }
EMULATION_HOOK __tsan_write_range(void* p, std::size_t size) { EMULATION_LOOK(p, size, true); }
EMULATION_HOOK __tsan_init() {}
EMULATION_HOOK __tsan_func_entry(void*) {}
EMULATION_HOOK __tsan_func_exit() {}
EMULATION_HOOK __tsan_vptr_update(void**, void*) {}
EMULATION_HOOK __tsan_vptr_read(void**) {}
#undef EMULATION_ACCESSES
#undef EMULATION_LOOK
#undef EMULATION_HOOK
#endif
