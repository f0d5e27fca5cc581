// Scratch memory that outlives a call: blocks are kept per thread, because a fresh large block
// costs a page fault per 4 KiB, which is more than the arithmetic done in it at (128, 64).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace fastwhiten::cpu {

class BlockPool {
 public:
  struct Block {
    void* memory;
    size_t bytes;
  };

  Block take(size_t bytes) {
    for (size_t i = 0; i < kept_.size(); ++i) {
      // Not from a block many times larger: the large one is for the large request that follows.
      if (kept_[i].bytes >= bytes && kept_[i].bytes <= 8 * bytes + kAlignment) {
        const Block block = kept_[i];
        kept_[i] = kept_.back();
        kept_.pop_back();
        return block;
      }
    }
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
    void* memory = std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    return {memory, rounded};
  }

  void give(Block block) {
    if (block.bytes > kLargestKept) {
      std::free(block.memory);
      return;
    }
    if (kept_.size() >= kMostKept) {
      std::free(kept_.front().memory);
      kept_.erase(kept_.begin());
    }
    kept_.push_back(block);
  }

  ~BlockPool() {
    for (const Block& block : kept_) std::free(block.memory);
  }

 private:
  static constexpr size_t kAlignment = 64;                 // a cache line, an AVX-512 register
  static constexpr size_t kLargestKept = size_t{4} << 20;  // the size of an L2 cache or two
  static constexpr size_t kMostKept = 12;
  std::vector<Block> kept_;
};

inline BlockPool& block_pool() {
  static thread_local BlockPool pool;
  return pool;
}

// count uninitialised elements, aligned to a cache line, returned to this thread's pool at scope
// exit.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : block_(block_pool().take(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T))) {}
  ~Buffer() { block_pool().give(block_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return static_cast<T*>(block_.memory); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  BlockPool::Block block_;
};

}  // namespace fastwhiten::cpu
