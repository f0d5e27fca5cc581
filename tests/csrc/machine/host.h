// Launches on the machine, for a program that is compiled without optimisation: kernels by their
// mangled names, global memory by the host's own addresses.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace machine {

// An array in global memory, and whether L2 holds it before the first launch. Addresses are the
// same in every run: what caches hold depends on them.
void* allocate(std::size_t bytes, bool in_l2);
void release(const void* first);

// Runs a kernel of the program in the folder that FASTWHITEN_MACHINE names, and appends what comes
// of it to the folder's report. Without a program nothing runs, and the report has sizes only.
// Where FASTWHITEN_MACHINE_ALONE is set, the blocks of one multiprocessor run.
void launch(const char* kernel, const std::uint32_t (&grid)[3], const std::uint32_t (&block)[3],
            std::int64_t shared, const std::vector<std::uint8_t>& parameters);

// Parameters as a kernel has them in constant memory: each aligned as its type.
template <class... Parameters>
std::vector<std::uint8_t> packed(const Parameters&... parameters) {
  std::vector<std::uint8_t> bytes;
  const auto add = [&](const auto& p) {
    using P = std::decay_t<decltype(p)>;
    static_assert(std::is_trivially_copyable_v<P>);
    const std::size_t at = (bytes.size() + alignof(P) - 1) / alignof(P) * alignof(P);
    bytes.resize(at + sizeof(P));
    std::memcpy(bytes.data() + at, &p, sizeof(P));
  };
  (add(parameters), ...);
  return bytes;
}

}  // namespace machine
