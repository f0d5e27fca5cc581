// One call of the kernels left out at run time, as if the source lacked it: how a mutation test
// asks what a barrier or a shuffle is good for without compiling the kernels again for each.
//
// A thread that comes to the call goes on with what it knows by itself: its own value, its own
// predicate. Calls are named by their place, "jacobi.cuh:139".
#pragma once

#include <cstdlib>
#include <set>
#include <string>
#include <utility>

#include "block.h"

namespace emulation {

class Omission {
 public:
  static Omission& instance() {
    static Omission omission;
    return omission;
  }

  // Leaves out the call at `place`, or none if it is empty, and records the calls that are reached.
  // False if it is no place.
  bool begin(const std::string& place) {
    const auto colon = place.rfind(':');
    place_ = place;
    line_ = colon == std::string::npos ? 0 : std::atoi(place.c_str() + colon + 1);
    records_ = true;
    return place.empty() || line_ > 0;
  }

  // True if the call at `site` is the one to leave out.
  bool operator()(const Site& site) {
    if (records_) reached_.insert({site.file, site.line});
    return site.line == line_ && site.text() == place_;
  }

  // The places of all calls reached since begin().
  std::set<std::string> reached() const {
    std::set<std::string> places;
    for (const auto& [file, line] : reached_) places.insert(Site{file, line}.text());
    return places;
  }

 private:
  std::string place_;
  int line_ = 0;  // no call has it
  bool records_ = false;
  std::set<std::pair<const char*, int>> reached_;
};

inline bool left_out(const char* file, int line) { return Omission::instance()({file, line}); }

}  // namespace emulation
