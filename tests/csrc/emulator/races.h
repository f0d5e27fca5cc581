// What is remembered of one word of memory, to find races.
//
// A race is two accesses of one word by two threads of a block, one of them a write, with neither a
// block barrier between them nor (inside a warp) a __syncwarp of both lanes. Every word remembers
// its last writer and its readers since; that is enough to find a conflict in the order that was
// run, whatever values were read.
#pragma once

#include <cstdint>

#include "block.h"

namespace emulation {

class Word {
 public:
  // Block::epoch at the last write and the last read; 0 if there was none.
  std::uint32_t write_epoch() const { return write_epoch_; }
  std::uint32_t read_epoch() const { return read_epoch_; }

  // The running thread reads: the thread whose write is not ordered before it, or -1.
  int read() {
    const Block& block = Block::instance();
    const int self = block.current;
    if (const int writer = unordered_writer(self); writer >= 0) return writer;
    const std::uint32_t bit = 1u << (self % kWarp);
    if (read_epoch_ != block.epoch) {
      read_epoch_ = block.epoch;
      read_warp_ = static_cast<std::uint16_t>(self / kWarp);
      read_lanes_ = bit;
      other_reader_ = -1;
    } else if (read_warp_ != self / kWarp) {
      other_reader_ = static_cast<std::int16_t>(self);
      return -1;
    } else {
      // Earlier readers that a __syncwarp ordered before this one need no more watching.
      if (unordered_reader(self) < 0) read_lanes_ = 0;
      read_lanes_ |= bit;
    }
    read_clock_ = block.clock();
    return -1;
  }

  // The running thread writes: the thread whose access is not ordered before it, or -1; `did` says
  // what that access was.
  int write(const char*& did) {
    const Block& block = Block::instance();
    const int self = block.current;
    did = "wrote";
    if (const int writer = unordered_writer(self); writer >= 0) return writer;
    did = "read";
    if (read_epoch_ == block.epoch) {
      if (const int reader = unordered_reader(self); reader >= 0) return reader;
      if (other_reader_ >= 0) return other_reader_;
      read_epoch_ = 0;
    }
    write_epoch_ = block.epoch;
    write_clock_ = block.clock();
    writer_ = static_cast<std::uint16_t>(self);
    return -1;
  }

 private:
  int unordered_writer(int self) const {
    const Block& block = Block::instance();
    const bool ordered = write_epoch_ != block.epoch || writer_ == self ||
                         block.ordered(writer_, write_clock_, self);
    return ordered ? -1 : writer_;
  }

  // A recorded reader, other than `self`, that is not ordered before it; -1 if there is none.
  int unordered_reader(int self) const {
    const Block& block = Block::instance();
    const int first = read_warp_ * kWarp;
    for (std::uint32_t rest = read_lanes_; rest != 0; rest &= rest - 1) {
      const int reader = first + __builtin_ctz(rest);
      if (reader != self && !block.ordered(reader, read_clock_, self)) return reader;
    }
    return -1;
  }

  std::uint32_t write_epoch_ = 0, write_clock_ = 0;
  std::uint32_t read_epoch_ = 0, read_clock_ = 0;
  std::uint32_t read_lanes_ = 0;  // of the warp that read first, since ordered
  std::uint16_t writer_ = 0;
  std::uint16_t read_warp_ = 0;
  std::int16_t other_reader_ = -1;  // a reader of another warp
};

}  // namespace emulation
