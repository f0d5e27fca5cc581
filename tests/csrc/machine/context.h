// What an instruction works on: a warp, its block's shared memory, global memory.
#pragma once

#include "warp.h"

namespace machine {

// Addresses of a memory instruction: what its time depends on.
struct Access {
  bool load = false, shared = false, global = false;
  int bytes = 0;
  uint32_t lanes = 0;
  std::array<uint64_t, kLanes> address{};
};

// Arrays of the host in place of global memory.
class Arrays {
 public:
  void add(uint64_t begin, std::size_t bytes) { ends_[begin] = begin + bytes; }
  void remove(uint64_t begin) {
    ends_.erase(begin);
    begin_ = end_ = 0;
  }
  void* at(uint64_t address, int bytes, const Instruction& in) {
    if (address < begin_ || address + static_cast<uint64_t>(bytes) > end_) find(address, bytes, in);
    return reinterpret_cast<void*>(address);
  }

 private:
  void find(uint64_t address, int bytes, const Instruction& in) {
    auto after = ends_.upper_bound(address);
    if (after != ends_.begin()) {
      --after;
      if (address + static_cast<uint64_t>(bytes) <= after->second) {
        begin_ = after->first;
        end_ = after->second;
        return;
      }
    }
    std::ostringstream text;
    text << in.name << " at " << in.address << " (" << in.line << "): address " << std::hex
         << address << " lies in no array";
    throw Error(text.str());
  }
  std::map<uint64_t, uint64_t> ends_;
  uint64_t begin_ = 0, end_ = 0;
};

struct Block {
  std::vector<uint8_t> shared;
  std::array<uint32_t, 3> index{};
  std::array<uint32_t, 3> shape{};
  int threads = 0;
};

struct Context {
  Warp& w;
  Arrays& arrays;
  Access access{};
};

}  // namespace machine
