// How an input lies in memory. Free of torch: host code and kernels share it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTWHITEN_HOST_DEVICE __host__ __device__
#else
#define FASTWHITEN_HOST_DEVICE
#endif

namespace fastwhiten {

// Rows [M, C], or planes [N, C, L] with M = N * L.
struct Layout {
  int64_t samples;   // N (M for rows)
  int64_t channels;  // C
  int64_t length;    // L (1 for rows)
  int64_t groups;    // G
  int64_t width;     // D = C / G
  // planes of one position each lie exactly as rows do
  FASTWHITEN_HOST_DEVICE bool planes() const { return length > 1; }
  FASTWHITEN_HOST_DEVICE int64_t rows() const { return samples * length; }
  FASTWHITEN_HOST_DEVICE int64_t numel() const { return samples * length * channels; }
};

}  // namespace fastwhiten
