// Small kernels, right ones and ones with planted faults: what the emulator must run, and find.
#include "cuda/platform.cuh"
#include "emulator/driver.h"

namespace planted {  // named: messages then carry the kernel's name

using fastwhiten::cuda::SharedArray;

// Sum over a block by halves; `fault` leaves something out.
enum Fault : int64_t {
  kNone,
  kNoBarrier,          // between writing and reading shared memory
  kNoLoopBarrier,      // between the steps of the tree
  kDivergentBarrier,   // half of the threads wait elsewhere
  kEarlyExit,          // one thread ends before the barrier
  kUnwritten,          // reads what nobody wrote
  kOutOfBounds,        // shared memory, by one
  kShortShared,        // an array that does not fit the launch
  kGlobalOutOfBounds,  // global memory, by one
  kGarbage,            // takes uninitialised global memory for zero
  kMisalignedRead,     // of a vector of four, where none may begin
  kMisalignedWrite,
};

__global__ void block_sum_kernel(const float* x, float* sum, int64_t fault) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  const SharedArray<float> a(arena, 0, fault == kShortShared ? n + 1 : n);
  if (fault == kEarlyExit && t == 5) return;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * n + t;
  if (fault != kUnwritten || t != 3) a[t] = x[fault == kGlobalOutOfBounds ? at + 1 : at];
  if (fault == kDivergentBarrier && t < n / 2) {
    __syncthreads();
  } else if (fault != kNoBarrier) {
    __syncthreads();
  }
  if (fault == kMisalignedRead) fastwhiten::cuda::load4(a, 5);
  if (fault == kMisalignedWrite) fastwhiten::cuda::store4(a, 6, {});
  for (int half = n / 2; half > 0; half /= 2) {
    if (t < half) a[t] += a[fault == kOutOfBounds && t == 0 ? n : t + half];
    if (fault != kNoLoopBarrier) __syncthreads();
  }
  if (t == 0) sum[blockIdx.x] = fault == kGarbage ? sum[blockIdx.x] + a[0] : float(a[0]);
}

// A warp hands vectors on: from global to shared memory and back, each thread its neighbour's, with
// a copy that goes on behind it.
enum VectorFault : int64_t {
  kWhole,
  kMisalignedLoad,    // a vector of global memory where none may begin
  kMisalignedStore,   // ... likewise
  kMisalignedShared,  // a vector written to shared memory
  kMisalignedCopy,    // a copy from where no vector may begin
  kNotWaited,         // reads what is being copied
  kOverwritten,       // writes what is being copied
  kOthersCopy,        // reads another thread's copy with no barrier between
  kCopyOutOfBounds,   // a copy to what the array does not have
};

template <class T>
__global__ void vectors_kernel(const T* x, T* out, int64_t fault) {
  FASTWHITEN_SHARED_MEMORY(arena);
  using namespace fastwhiten::cuda;
  constexpr int kApart = 32 * kPartWords<T>;  // what every thread copies, part by part
  const int t = static_cast<int>(threadIdx.x), words = static_cast<int>(4 * 32 * sizeof(T) / 4);
  const SharedArray<uint32_t> copies(arena, 0, words);
  const SharedArray<float> sums(arena, 4 * words, 4 * 32);
  const int own = t * kPartWords<T>;
  start_copy4(copies, fault == kCopyOutOfBounds ? words - 1 + own : own, kApart,
              x + 4 * t + (fault == kMisalignedCopy ? 1 : 0), t != 3);
  const Four<T> four = load4(x + 4 * t + (fault == kMisalignedLoad ? 1 : 0));
  store4(sums, 4 * t + (fault == kMisalignedShared ? 1 : 0),
         Four<float>{{convert<float>(four.v[0]), convert<float>(four.v[1]),
                      convert<float>(four.v[2]), convert<float>(four.v[3])}});
  if (fault == kOverwritten) copies[own] = 0;
  if (fault != kNotWaited) wait_for_copies();
  if (fault != kOthersCopy) __syncwarp();
  const Four<T> copy = copied4<T>(copies, (t ^ 1) * kPartWords<T>, kApart);
  const Four<float> both = load4(sums, 4 * (t ^ 1));
  Four<T> sum;
  for (int n = 0; n < 4; ++n) sum.v[n] = round_to<T>(both.v[n] + convert<float>(copy.v[n]));
  store4(out + 4 * t + (fault == kMisalignedStore ? 3 : 0), sum);
}

// What every warp operation gives, and the faults that belong to warps.
enum WarpFault : int64_t {
  kRight,
  kAbsentSource,     // reads a lane that takes no part
  kNotInMask,        // a lane is not in its own mask
  kOtherSite,        // lanes of one mask call two shuffles
  kNoSyncwarp,       // shared memory between lanes without __syncwarp
  kShuffleForFence,  // a shuffle where __syncwarp is needed
  kHalfSyncwarp,     // the mask leaves out the lanes that wrote
};

__global__ void warp_kernel(int32_t* out, int64_t fault) {
  FASTWHITEN_SHARED_MEMORY(arena);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const SharedArray<int32_t> a(arena, 0, 64);
  const unsigned all = 0xffffffffu, own_half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int32_t* row = out + 13 * t;
  row[0] = __shfl_sync(all, t, lane + 1);
  row[1] = __shfl_xor_sync(all, t, 5);
  row[2] = __shfl_down_sync(all, t, 3);
  row[3] = __shfl_up_sync(all, t, 3);
  row[4] = __shfl_xor_sync(own_half, t, 8, 16);
  row[5] = static_cast<int32_t>(__ballot_sync(all, lane % 3 == 0));
  row[6] = __any_sync(all, lane == 7) + 2 * __any_sync(all, lane == 77);
  row[7] = __all_sync(all, lane < 32) + 2 * __all_sync(all, lane < 31);
  row[8] = __syncthreads_count(t % 2) + 100 * __syncthreads_or(t == 40) +
           1000 * __syncthreads_and(t < 40) + 10000 * __syncthreads_and(t < 64);
  row[9] = __shfl_down_sync(own_half, t, 12, 16);
  row[10] = static_cast<int32_t>(__shfl_sync(all, 0.5 * t, 31 - lane) * 2.0);
  row[12] =
      static_cast<int32_t>(__reduce_max_sync(own_half, lane == 9 ? 0xfffffff0u : unsigned(t)));
  if (fault == kAbsentSource && lane < 16) {
    row[11] = __shfl_sync(0xffffu, t, lane + 8);
  }
  if (fault == kNotInMask) __syncwarp(0x7fffffffu);
  if (fault == kOtherSite && lane < 16) {
    row[11] = __shfl_xor_sync(all, t, 1);
  } else if (fault == kOtherSite) {
    row[11] = __shfl_xor_sync(all, t, 2);
  }
  a[t] = 0;
  __syncthreads();
  a[t] = t;
  if (fault < kNoSyncwarp) __syncwarp();
  if (fault == kShuffleForFence) row[11] = __shfl_sync(all, t, 0);
  if (fault == kHalfSyncwarp) __syncwarp(own_half);
  row[11] = a[t ^ 31];
}

// Neighbours hand numbers on through global memory, and the faults that are races there.
enum GlobalFault : int64_t {
  kOrdered,
  kReadTooEarly,     // no barrier after writing
  kWrittenTooEarly,  // no barrier after reading
  kNoWarpBarrier,    // between lanes of a warp
  kHalfWarpBarrier,  // for the lanes of the own half only
  kBlocksRead,       // a block reads what another writes
  kBlocksWrite,      // two blocks write a word, both the same
  kNobodyWrote,      // reads an output before writing it
  kOneWrites,        // what all others read
};

__global__ void exchange_kernel(int32_t* x, int32_t* out, __half* halves, int64_t fault) {
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  int32_t *const row = x + 64 * blockIdx.x, *const result = out + 64 * blockIdx.x;
  if (fault == kNobodyWrote && t == 3) row[t] = result[t];
  row[t] = t;
  halves[64 * blockIdx.x + t] = __float2half(static_cast<float>(t));  // two threads a word
  if (fault != kReadTooEarly) __syncthreads();
  const int32_t other = row[n - 1 - t];
  if (fault == kOneWrites && (row[5] < 0 || t == 40)) row[5] = t;
  if (fault != kWrittenTooEarly) __syncthreads();
  row[t] = other;
  if (fault == kHalfWarpBarrier) {
    __syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  } else if (fault != kNoWarpBarrier) {
    __syncwarp();
  }
  result[t] = row[t ^ 31];
  if (fault == kBlocksRead && t == 0) result[t] = x[64 * ((blockIdx.x + 1) % gridDim.x)];
  if (fault == kBlocksWrite && t == 7) out[7] = 24;
}

// Another launch may read what all blocks of the one before wrote.
__global__ void sum_kernel(const int32_t* out, int32_t* sum, int64_t count) {
  sum[threadIdx.x] = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum[threadIdx.x] += out[i];
}

// Conversions: every value in, its half and bfloat16 out, and back.
__global__ void convert_kernel(const double* x, __half* h, __nv_bfloat16* b, float* back) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  h[2 * i] = __float2half(static_cast<float>(x[i]));
  h[2 * i + 1] = __double2half(x[i]);
  b[2 * i] = __float2bfloat16(static_cast<float>(x[i]));
  b[2 * i + 1] = __double2bfloat16(x[i]);
  back[2 * i] = __half2float(h[2 * i]);
  back[2 * i + 1] = __bfloat162float(b[2 * i]);
}

void run(emulation::Arguments& a) {
  const int64_t which = a.integer("which"), fault = a.integer("fault", 0);
  const auto grid = static_cast<unsigned>(a.integer("grid", 1));
  const auto block = static_cast<unsigned>(a.integer("block", 64));
  if (which == 0) {
    emulation::launch(block_sum_kernel, grid, block, 4 * block, a.order(), a.array<float>("x"),
                      a.output<float>("sum", grid), fault);
  } else if (which == 1) {
    emulation::launch(warp_kernel, 1, 64, 4 * 64, a.order(),
                      a.output<int32_t>("out", std::size_t{64} * 13), fault);
  } else if (which == 4) {
    const auto run_vectors = [&](auto element) {
      using T = decltype(element);
      emulation::launch(vectors_kernel<T>, 1, 32, 4 * 32 * (sizeof(T) + 4), a.order(),
                        a.array<T>("x"), a.output<T>("out", a.count("x")), fault);
    };
    const std::string type = a.type("x");
    if (type == "f16") run_vectors(__half{});
    if (type == "bf16") run_vectors(__nv_bfloat16{});
    if (type == "f32") run_vectors(0.0f);
    if (type == "f64") run_vectors(0.0);
  } else if (which == 3) {
    const std::size_t n = a.count("x");
    auto* const out = a.output<int32_t>("out", n);
    const auto scratch = emulation::allocate_global<__half>(n, "scratch");
    emulation::launch(exchange_kernel, static_cast<unsigned>(n / 64), 64, 0, a.order(),
                      a.array<int32_t>("x"), out, scratch.get(), fault);
    emulation::launch(sum_kernel, 1, 32, 0, a.order(), out, a.output<int32_t>("sum", 32),
                      static_cast<int64_t>(n));
  } else {
    const std::size_t n = a.count("x");
    emulation::launch(convert_kernel, static_cast<unsigned>(n), 1, 0, a.order(),
                      a.array<double>("x"), a.output<__half>("h", 2 * n),
                      a.output<__nv_bfloat16>("b", 2 * n), a.output<float>("back", 2 * n));
  }
}

}  // namespace planted

int main(int argc, char** argv) { return emulation::drive(argc, argv, planted::run); }
