// When memory answers: caches, bandwidths, bank conflicts.
#pragma once

#include <algorithm>

#include "h100.h"
#include "transfers.h"

namespace machine {

constexpr int kSector = 32, kLine = 128;

// Which sectors L2 holds, over all launches: each has one place, as buffers in a row do.
class L2 {
 public:
  bool touch(uint64_t sector) {
    uint64_t& at = tags_[sector % tags_.size()];
    const bool hit = at == sector + 1;
    at = sector + 1;
    return hit;
  }
  void flush() { std::fill(tags_.begin(), tags_.end(), 0); }

 private:
  std::vector<uint64_t> tags_ = std::vector<uint64_t>(H100::l2_size / kSector);
};

// L1 of one multiprocessor: sets of four lines of four sectors, the oldest one goes.
class L1 {
 public:
  explicit L1(int64_t bytes) : sets_(static_cast<std::size_t>(bytes / kLine / kWays) + 1) {}

  // When a sector that is there or on its way arrives; null if it is neither.
  double* find(uint64_t sector) {
    for (Way& way : sets_[sector / 4 % sets_.size()]) {
      if (way.line != sector / 4 + 1) continue;
      way.used = ++clock_;
      return way.arrival[sector % 4] < 0 ? nullptr : &way.arrival[sector % 4];
    }
    return nullptr;
  }
  void fill(uint64_t sector, double arrival) {
    auto& set = sets_[sector / 4 % sets_.size()];
    Way* to = &set[0];
    for (Way& way : set) {
      if (way.used < to->used) to = &way;
    }
    for (Way& way : set) {
      if (way.line == sector / 4 + 1) to = &way;
    }
    if (to->line != sector / 4 + 1) *to = Way{sector / 4 + 1};
    to->arrival[sector % 4] = arrival;
    to->used = ++clock_;
  }

 private:
  static constexpr int kWays = 4;
  struct Way {
    uint64_t line = 0;
    std::array<double, 4> arrival{-1, -1, -1, -1};
    uint64_t used = 0;
  };
  std::vector<std::array<Way, kWays>> sets_;
  uint64_t clock_ = 0;
};

// How many times shared memory works for an access: the most different words of one bank, quarter
// by quarter where lanes take 16 bytes, half by half where they take 8.
inline int shared_wavefronts(const Access& a) {
  const int parts = std::max(1, a.bytes / 4), lanes_of_part = kLanes / parts;
  int total = 0;
  for (int part = 0; part < parts; ++part) {
    std::array<std::vector<uint64_t>, 32> banks;
    std::size_t most = 0;
    for (int i = part * lanes_of_part; i < (part + 1) * lanes_of_part; ++i) {
      if ((a.lanes >> i & 1) == 0) continue;
      for (int word = 0; word < parts; ++word) {
        const uint64_t at =
            a.address[static_cast<std::size_t>(i)] / 4 + static_cast<uint64_t>(word);
        auto& bank = banks[at % 32];
        if (std::find(bank.begin(), bank.end(), at) == bank.end()) bank.push_back(at);
        most = std::max(most, bank.size());
      }
    }
    total += static_cast<int>(most);
  }
  return std::max(total, 1);
}

// Different units of `unit` bytes that an access touches, in order.
inline std::vector<uint64_t> units(const Access& a, int unit) {
  std::vector<uint64_t> found;
  for (int i = 0; i < kLanes; ++i) {
    if ((a.lanes >> i & 1) == 0) continue;
    const uint64_t first = a.address[static_cast<std::size_t>(i)] / static_cast<uint64_t>(unit);
    const uint64_t last =
        (a.address[static_cast<std::size_t>(i)] + static_cast<uint64_t>(a.bytes) - 1) /
        static_cast<uint64_t>(unit);
    for (uint64_t u = first; u <= last; ++u) {
      if (std::find(found.begin(), found.end(), u) == found.end()) found.push_back(u);
    }
  }
  return found;
}

struct Traffic {
  int64_t wavefronts = 0, conflicts = 0;  // of shared memory: all, and beyond the least
  int64_t shuffles = 0;
  int64_t requests = 0, sectors = 0, l1_hits = 0, l2_hits = 0,
          dram = 0;  // sectors of global memory
};

// The memory side of one multiprocessor. Calls come in the order of time.
class Memory {
 public:
  // `active`: multiprocessors at work, which share L2 and DRAM.
  Memory(L2& l2, int64_t l1_bytes, int active)
      : l2_(l2),
        l1_(l1_bytes),
        l2_rate_(std::min(H100::l2_port_bytes, H100::l2_bytes / active)),
        dram_rate_(std::min(H100::l2_port_bytes, H100::dram_bytes / active)) {}

  Traffic traffic;

  double dram_rate() const { return dram_rate_; }

  // When shared memory has done all that it was given.
  int64_t free() const { return static_cast<int64_t>(pipe_); }

  struct Times {
    int64_t result, operands;
  };

  Times shuffle(int64_t now) {
    traffic.shuffles += 1;
    const double begin = occupy(now, H100::shuffle);
    return {static_cast<int64_t>(begin) + H100::shfl, static_cast<int64_t>(begin) + H100::operands};
  }

  Times access(int64_t now, const Access& a) {
    if (a.lanes == 0) return {now + H100::lds, now + H100::operands};
    return a.shared ? shared(now, a) : global(now, a);
  }

 private:
  double occupy(int64_t now, double cycles) {
    const double begin = std::max(pipe_, static_cast<double>(now));
    pipe_ = begin + cycles;
    return begin;
  }
  Times shared(int64_t now, const Access& a) {
    const int count = shared_wavefronts(a) * H100::wavefront;
    traffic.wavefronts += count;
    traffic.conflicts += count - std::max(1, a.bytes / 4);
    const auto begin = static_cast<int64_t>(occupy(now, count));
    return {begin + H100::lds + count - 1, begin + H100::operands + count - 1};
  }
  Times global(int64_t now, const Access& a) {
    const auto lines = units(a, kLine), sectors = units(a, kSector);
    const auto bytes = static_cast<double>(__builtin_popcount(a.lanes) * a.bytes);
    const double cycles = std::max(static_cast<double>(lines.size()), bytes / kLine);
    const double begin = occupy(now, cycles);
    const double through = begin + cycles - 1;
    double result = through + H100::l1_hit;
    traffic.requests += 1;
    traffic.sectors += static_cast<int64_t>(sectors.size());
    for (const uint64_t s : sectors) {
      if (const double* const arrival = a.load ? l1_.find(s) : nullptr) {
        traffic.l1_hits += 1;
        result = std::max(result, *arrival);
        continue;
      }
      const bool in_l2 = l2_.touch(s);
      port_ = std::max(port_, begin) + kSector / l2_rate_;
      if (!a.load) continue;
      double arrival = port_ + H100::l2_hit;
      if (in_l2) {
        traffic.l2_hits += 1;
      } else {
        traffic.dram += 1;
        dram_ = std::max(dram_, begin) + kSector / dram_rate_;
        arrival = std::max(port_, dram_) + H100::dram;
      }
      l1_.fill(s, arrival);
      result = std::max(result, arrival);
    }
    return {static_cast<int64_t>(result), static_cast<int64_t>(through) + H100::operands};
  }

  L2& l2_;
  L1 l1_;
  double l2_rate_, dram_rate_, pipe_ = 0, port_ = 0, dram_ = 0;
};

}  // namespace machine
