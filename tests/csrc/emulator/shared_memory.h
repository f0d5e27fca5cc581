// Shared memory whose every access is checked: bounds, alignment, reads of what nobody wrote, and
// races (races.h).
#pragma once

#include <cstdlib>
#include <map>
#include <type_traits>
#include <vector>

#include "races.h"

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
    copies_.clear();
    first_epoch_ = Block::instance().epoch + 1;  // of the block that starts now
  }

  char* memory() { return memory_; }
  std::size_t bytes() const { return bytes_; }

  void read(std::size_t offset, std::size_t size) {
    for (std::size_t w = offset / 4; w < (offset + size) / 4; ++w) read_word(w);
  }
  // A copy of the running thread's that goes on: `words` become what is at `offset` when it waits.
  void start_copy(std::size_t offset, const std::uint32_t* words, std::size_t count) {
    const int self = Block::instance().current;
    for (std::size_t n = 0; n < count; ++n) {
      write_word(offset / 4 + n);
      copies_[offset / 4 + n] = {self, words[n]};
    }
  }
  void finish_copies() {
    const int self = Block::instance().current;
    for (auto copy = copies_.begin(); copy != copies_.end();) {
      if (copy->second.thread != self) {
        ++copy;
        continue;
      }
      const auto [index, mine] = *copy;
      copy = copies_.erase(copy);
      write_word(index);
      std::memcpy(memory_ + 4 * index, &mine.word, 4);
    }
  }
  void written(std::size_t offset, std::size_t size) {
    for (std::size_t w = offset / 4; w < (offset + size) / 4; ++w) write_word(w);
  }

 private:
  struct Copy {
    int thread;
    std::uint32_t word;
  };

  void check_copies(std::size_t index, const char* does) {
    const auto copy = copies_.find(index);
    if (copies_.empty() || copy == copies_.end()) return;
    Block& block = Block::instance();
    block.fail("thread " + std::to_string(block.current) + " " + does +
               " the shared word at byte " + std::to_string(4 * index) + ", which thread " +
               std::to_string(copy->second.thread) + " copies to and has not waited for");
  }
  void read_word(std::size_t index) {
    check_copies(index, "reads");
    Word& word = words_[index];
    if (word.write_epoch() < first_epoch_) {
      Block& block = Block::instance();
      block.fail("thread " + std::to_string(block.current) + " reads the shared word at byte " +
                 std::to_string(4 * index) + ", which nobody wrote");
    }
    if (const int writer = word.read(); writer >= 0) race(index, writer, "wrote", "reads");
  }

  void write_word(std::size_t index) {
    check_copies(index, "writes");
    const char* did = "";
    if (const int other = words_[index].write(did); other >= 0) race(index, other, did, "writes");
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
  std::map<std::size_t, Copy> copies_;  // by word
  std::uint32_t first_epoch_ = 0;
};

inline void finish_copies() { Arena::instance().finish_copies(); }

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
  // Fails unless a vector may be moved at element i: at a multiple of its bytes.
  void check_vector(int64_t i, int64_t bytes = 16) const {
    const int64_t at = offset_ + i * static_cast<int64_t>(sizeof(T));
    if (at % bytes != 0) {
      ::emulation::Block::instance().fail("thread " +
                                          std::to_string(::emulation::Block::instance().current) +
                                          ": a vector at byte " + std::to_string(at) +
                                          ", which is no multiple of " + std::to_string(bytes));
    }
  }
  // See Arena::start_copy: of `count` elements, at a multiple of their bytes.
  void start_copy(int64_t i, const T* elements, int64_t count) const {
    check_vector(i, count * static_cast<int64_t>(sizeof(T)));
    (*this)[i], (*this)[i + count - 1];  // inside
    std::vector<std::uint32_t> words(static_cast<std::size_t>(count) * sizeof(T) / 4);
    std::memcpy(words.data(), elements, 4 * words.size());
    ::emulation::Arena::instance().start_copy(
        static_cast<std::size_t>(offset_ + i * static_cast<int64_t>(sizeof(T))), words.data(),
        words.size());
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
