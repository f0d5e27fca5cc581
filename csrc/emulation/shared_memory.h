// Shared memory whose every access is checked: bounds, alignment, reads of what nobody wrote, and
// races.
//
// A race is two accesses of one word by two threads, one of them a write, with neither a block
// barrier between them nor (inside a warp) a __syncwarp of both lanes. Every word remembers its
// last writer and its readers since; that is enough to find a conflict in the order that was run,
// whatever values were read.
#pragma once

#include <cstdlib>
#include <type_traits>
#include <vector>

#include "block.h"

namespace emulation {

class Arena {
 public:
  static Arena& instance() {
    static Arena arena;
    return arena;
  }
  ~Arena() { std::free(memory_); }

  // `bytes` of garbage: every byte is 255 (a NaN in any floating type), no word counts as written.
  void reset(std::size_t bytes) {
    if (memory_ == nullptr || bytes != bytes_) {
      std::free(memory_);  // exactly `bytes`: AddressSanitizer sees raw pointers run over
      memory_ = static_cast<char*>(std::malloc(bytes == 0 ? 1 : bytes));
      bytes_ = bytes;
      words_.assign((bytes + 3) / 4, Word{});
    }
    std::memset(memory_, 255, bytes);
    first_epoch_ = Block::instance().epoch + 1;  // of the block that starts now
  }

  char* memory() { return memory_; }
  std::size_t bytes() const { return bytes_; }

  void read(std::size_t offset, std::size_t size) {
    for (std::size_t w = offset / 4; w < (offset + size) / 4; ++w) read_word(w);
  }
  void written(std::size_t offset, std::size_t size) {
    for (std::size_t w = offset / 4; w < (offset + size) / 4; ++w) write_word(w);
  }

 private:
  struct Word {
    std::uint32_t write_epoch = 0, write_clock = 0;
    std::uint32_t read_epoch = 0, read_clock = 0;
    std::uint32_t read_lanes = 0;  // of the warp that read first, since ordered
    std::uint16_t writer = 0;
    std::uint16_t read_warp = 0;
    std::int16_t other_reader = -1;  // a reader of another warp
  };

  void read_word(std::size_t index) {
    const Block& block = Block::instance();
    Word& word = words_[index];
    const int self = block.current;
    if (word.write_epoch < first_epoch_) {
      Block::instance().fail("thread " + std::to_string(self) + " reads the shared word at byte " +
                             std::to_string(4 * index) + ", which nobody wrote");
    }
    if (word.write_epoch == block.epoch && word.writer != self &&
        !block.ordered(word.writer, word.write_clock, self)) {
      race(index, word.writer, "wrote", "reads");
    }
    const std::uint32_t bit = 1u << (self % kWarp);
    if (word.read_epoch != block.epoch) {
      word.read_epoch = block.epoch;
      word.read_warp = static_cast<std::uint16_t>(self / kWarp);
      word.read_lanes = bit;
      word.other_reader = -1;
    } else if (word.read_warp != self / kWarp) {
      word.other_reader = static_cast<std::int16_t>(self);
      return;
    } else {
      // Earlier readers that a __syncwarp ordered before this one need no more watching.
      if (unordered_reader(word, self) < 0) word.read_lanes = 0;
      word.read_lanes |= bit;
    }
    word.read_clock = block.clock();
  }

  void write_word(std::size_t index) {
    const Block& block = Block::instance();
    Word& word = words_[index];
    const int self = block.current;
    if (word.write_epoch == block.epoch && word.writer != self &&
        !block.ordered(word.writer, word.write_clock, self)) {
      race(index, word.writer, "wrote", "writes");
    }
    if (word.read_epoch == block.epoch) {
      const int reader = unordered_reader(word, self);
      if (reader >= 0) race(index, reader, "read", "writes");
      if (word.other_reader >= 0) race(index, word.other_reader, "read", "writes");
      word.read_epoch = 0;
    }
    word.write_epoch = block.epoch;
    word.write_clock = block.clock();
    word.writer = static_cast<std::uint16_t>(self);
  }

  // A recorded reader, other than `self`, that is not ordered before it; -1 if there is none.
  static int unordered_reader(const Word& word, int self) {
    const Block& block = Block::instance();
    const int first = word.read_warp * kWarp;
    for (std::uint32_t rest = word.read_lanes; rest != 0; rest &= rest - 1) {
      const int reader = first + __builtin_ctz(rest);
      if (reader != self && !block.ordered(reader, word.read_clock, self)) return reader;
    }
    return -1;
  }

  [[noreturn]] static void race(std::size_t index, int before, const char* did, const char* does) {
    Block& block = Block::instance();
    block.fail("race on the shared word at byte " + std::to_string(4 * index) + ": thread " +
               std::to_string(before) + " " + did + " it, thread " + std::to_string(block.current) +
               " " + does + " it with no barrier between");
  }

  char* memory_ = nullptr;
  std::size_t bytes_ = 0;
  std::vector<Word> words_;
  std::uint32_t first_epoch_ = 0;
};

// One element of shared memory, as an expression: reading and writing are told to the arena.
template <class T>
class SharedElement {
 public:
  SharedElement(char* place, std::size_t offset) : place_(place), offset_(offset) {}
  SharedElement(const SharedElement&) = default;

  operator T() const {  // NOLINT: stands for a T&
    Arena::instance().read(offset_, sizeof(T));
    T value;
    std::memcpy(&value, place_, sizeof(T));
    return value;
  }
  const SharedElement& operator=(T value) const {
    Arena::instance().written(offset_, sizeof(T));
    std::memcpy(place_, &value, sizeof(T));
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const {
    return *this = static_cast<T>(other);
  }
  const SharedElement& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }
  const SharedElement& operator-=(T value) const { return *this = static_cast<T>(*this) - value; }
  const SharedElement& operator*=(T value) const { return *this = static_cast<T>(*this) * value; }

 private:
  char* place_;
  std::size_t offset_;
};

}  // namespace emulation

// What platform.cuh defines for a device: the arena of the block, and typed views into it.
#define FASTWHITEN_SHARED_MEMORY(name) char* const name = ::emulation::Arena::instance().memory()

namespace fastwhiten {
namespace cuda {

template <class T>
class SharedArray {
  static_assert(sizeof(T) % 4 == 0, "races are found by words of four bytes");

 public:
  SharedArray() = default;
  SharedArray(char* arena, int64_t byte_offset, int64_t count)
      : first_(arena + byte_offset), count_(count) {
    const auto bytes = static_cast<int64_t>(::emulation::Arena::instance().bytes());
    offset_ = first_ - ::emulation::Arena::instance().memory();
    if (count < 0 || offset_ < 0 || offset_ % static_cast<int64_t>(sizeof(T)) != 0 ||
        offset_ + count * static_cast<int64_t>(sizeof(T)) > bytes) {
      ::emulation::Block::instance().fail(
          "a shared array of " + std::to_string(count) + " elements of " +
          std::to_string(sizeof(T)) + " bytes at byte " + std::to_string(offset_) +
          " is misaligned or does not fit the " + std::to_string(bytes) + " bytes of the launch");
    }
  }

  ::emulation::SharedElement<T> operator[](int64_t i) const {
    if (i < 0 || i >= count_) {
      ::emulation::Block::instance().fail(
          "thread " + std::to_string(::emulation::Block::instance().current) + ": index " +
          std::to_string(i) + " into a shared array of " + std::to_string(count_));
    }
    const int64_t bytes = i * static_cast<int64_t>(sizeof(T));
    return {first_ + bytes, static_cast<std::size_t>(offset_ + bytes)};
  }
  T load(int64_t i) const { return (*this)[i]; }
  void store(int64_t i, T value) const { (*this)[i] = value; }

 private:
  char* first_ = nullptr;
  int64_t offset_ = 0;
  int64_t count_ = 0;
};

}  // namespace cuda
}  // namespace fastwhiten
