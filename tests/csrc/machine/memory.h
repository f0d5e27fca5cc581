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
  explicit L1(int64_t bytes)
      : ways_(static_cast<std::size_t>(std::max<int64_t>(bytes, kLine * kWays) / kLine / kWays) *
              kWays) {}
  bool touch(uint64_t sector, bool load) {
    const uint64_t line = sector / 4 + 1;
    const uint32_t bit = 1u << sector % 4;
    const std::size_t first = line % (ways_.size() / kWays) * kWays;
    Way* oldest = &ways_[first];
    for (std::size_t i = first; i < first + kWays; ++i) {
      Way& way = ways_[i];
      if (way.line == line) {
        const bool hit = way.sectors & bit;
        if (load) way.sectors |= bit;
        way.used = ++clock_;
        return hit;
      }
      if (way.used < oldest->used) oldest = &way;
    }
    if (load) *oldest = {line, bit, ++clock_};
    return false;
  }

 private:
  static constexpr std::size_t kWays = 4;
  struct Way {
    uint64_t line = 0;
    uint32_t sectors = 0;
    uint64_t used = 0;
  };
  std::vector<Way> ways_;
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

  // Cycles of work that the shared pipe has before it.
  double backlog(int64_t now) const { return std::max(0.0, pipe_ - static_cast<double>(now)); }

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
      const bool in_l1 = l1_.touch(s, a.load);
      if (a.load && in_l1) {
        traffic.l1_hits += 1;
        continue;
      }
      const bool in_l2 = l2_.touch(s);
      port_ = std::max(port_, begin) + kSector / l2_rate_;
      double done = port_ + H100::l2_hit;
      if (a.load && !in_l2) {
        traffic.dram += 1;
        dram_ = std::max(dram_, begin) + kSector / dram_rate_;
        done = std::max(port_, dram_) + H100::dram;
      } else {
        traffic.l2_hits += 1;
      }
      result = std::max(result, done);
    }
    return {static_cast<int64_t>(result), static_cast<int64_t>(through) + H100::operands};
  }

  L2& l2_;
  L1 l1_;
  double l2_rate_, dram_rate_, pipe_ = 0, port_ = 0, dram_ = 0;
};

}  // namespace machine
