// c [m, n] (+)= alpha op(a) op(b).
//
// op(b) is packed into panels of kColumns columns, cut into slices of kDepth rows that stay in the
// L1 cache (24 KiB) while up to kMostRows rows of op(a), which stay in the L2 cache, run along
// them. A transposed a is packed, too: its columns, a power of two apart, would meet in few sets of
// the L1. A block of c belongs to one thread, which adds its slices in order: so no bit depends on
// the number of threads. MKL takes AVX-512 on Intel's processors alone: forward and backward of
// (256, 2048) take .62 of the time with MKL's products on an AMD EPYC with AVX-512, 1.03 of it
// where MKL is made to believe that it is an Intel, and .93 with AVX2 (benchmarks/choices.py).
#include "gemm.h"

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "workspace.h"

namespace fastwhiten::cpu {
namespace {

constexpr int64_t kDepth = 128;
constexpr int64_t kMostRows = 96;
constexpr int64_t kRowStep =
    24;  // a multiple of the rows of every instruction set's block: 8, 6, 4
constexpr int64_t kPackedBytes = 4 << 20;  // of each factor: what the pool of buffers keeps

template <class T>
constexpr int64_t kColumns = 192 / sizeof(T);  // three vectors of 64 bytes

// to [k, ld]: columns [0, width) of from [k, width], or of the transpose of from [width, k]; zeros
// up to ld.
template <class T>
void pack(bool transposed, int64_t width, int64_t k, const T* from, int64_t ld_from, T* to,
          int64_t ld) {
  if (transposed) {
    product_kernels<T>().transpose(width, k, from, ld_from, to, ld);
  } else {
    for (int64_t l = 0; l < k; ++l) std::copy_n(from + l * ld_from, width, to + l * ld);
  }
  for (int64_t l = 0; width < ld && l < k; ++l) {
    std::fill(to + l * ld + width, to + (l + 1) * ld, T(0));
  }
}

// f(unit) for every unit of work, by all threads unless a team is at work already.
template <class F>
void for_units(int64_t count, const F& f) {
  share(count, [&f](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) f(u);
  });
}

// Small ones, by the calling thread.
template <class T>
void direct_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                 const T* a, int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc,
                 bool lower) {
  const int64_t width = padded<T>(n);
  const bool packs = transpose_b || width != n || alpha != T(1);
  Buffer<T> right(packs ? k * width : 0);
  if (packs) {
    pack(transpose_b, n, k, b, ldb, right.get(), width);
    for (int64_t e = 0; alpha != T(1) && e < k * width; ++e) right[e] *= alpha;
  }
  product_kernels<T>().multiply(m, n, k, a, transpose_a ? 1 : lda, transpose_a ? lda : 1,
                                packs ? right.get() : b, packs ? width : ldb, c, ldc,
                                add ? Into::kAdd : Into::kOver, lower);
}

template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                  const T* a, int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc,
                  bool lower) {
  constexpr int64_t columns = kColumns<T>;
  const int64_t panels = (n + columns - 1) / columns;
  // Blocks of rows as equal as can be: threads get the same number of them.
  const int64_t parts = (m + kMostRows - 1) / kMostRows;
  const int64_t rows_of_block = ((m + parts - 1) / parts + kRowStep - 1) / kRowStep * kRowStep;
  const int64_t blocks = (m + rows_of_block - 1) / rows_of_block;
  const int64_t widest = std::max(panels * columns, blocks * rows_of_block);
  const int64_t fitting = kPackedBytes / static_cast<int64_t>(sizeof(T)) / widest;
  const int64_t deep = std::min(k, std::max(kDepth, fitting / kDepth * kDepth));
  Buffer<T> left(transpose_a ? blocks * deep * rows_of_block : 0), right(panels * deep * columns);
  Buffer<int64_t> wanted(blocks * panels);  // the blocks of c that are multiplied
  int64_t count = 0;
  for (int64_t u = 0; u < blocks * panels; ++u) {
    const bool above = (u / panels + 1) * rows_of_block <= u % panels * columns;
    if (!lower || !above) wanted[count++] = u;
  }
  const auto multiply = product_kernels<T>().multiply;
  for (int64_t k0 = 0; k0 < k; k0 += deep) {
    const int64_t depth = std::min(deep, k - k0);
    for_units((transpose_a ? blocks : 0) + panels, [&](int64_t u) {
      if (u < panels) {
        const int64_t j = u * columns;
        T* const to = right.get() + j * deep;
        pack(transpose_b, std::min(columns, n - j), depth,
             transpose_b ? b + j * ldb + k0 : b + k0 * ldb + j, ldb, to, columns);
        for (int64_t e = 0; alpha != T(1) && e < depth * columns; ++e) to[e] *= alpha;
      } else {
        const int64_t i = (u - panels) * rows_of_block;
        pack(false, std::min(rows_of_block, m - i), depth, a + k0 * lda + i, lda,
             left.get() + i * deep, rows_of_block);
      }
    });
    for_units(count, [&](int64_t w) {
      const int64_t i = wanted[w] / panels * rows_of_block, j = wanted[w] % panels * columns;
      for (int64_t l = 0; l < depth; l += kDepth) {
        const T* of_a =
            transpose_a ? left.get() + i * deep + l * rows_of_block : a + i * lda + k0 + l;
        multiply(std::min(rows_of_block, m - i), std::min(columns, n - j),
                 std::min(kDepth, depth - l), of_a, transpose_a ? 1 : lda,
                 transpose_a ? rows_of_block : 1, right.get() + j * deep + l * columns, columns,
                 c + i * ldc + j, ldc, add || k0 + l > 0 ? Into::kAdd : Into::kOver, false);
      }
    });
  }
}

}  // namespace

template <class T>
bool own_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
              const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc,
              bool lower) {
  // MKL packs what lies in the L1 or L2 cache anyway: on Zen 3 backward_matrix takes .85 of the
  // time in float32, .5 to .66 in float64. Beyond, a team of MKL's may be faster.
  constexpr int64_t kDirect = 96;
  // Between the two, waking the team twice costs more than the faster inner loop gains (128 x 512 x
  // 128 took 160 us, MKL's one region 130; at 256 x 256 x 256 ours take half of MKL's time). Thin
  // ones are panels, which the stages multiply themselves.
  constexpr double kBlocked = 2.5e7;
  constexpr int64_t kThin = 64;
  const bool ours =
      choice() == Choice::kFaster ? product_kernels<T>().fused : choice() == Choice::kOurs;
  const bool add = beta == T(1);
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  if (!ours || !(add || beta == T(0))) return false;
  if (std::max({m, n, k}) <= kDirect) {
    direct_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, add, c, ldc, lower);
  } else if (flops >= kBlocked && std::min({m, n, k}) >= kThin) {
    blocked_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, add, c, ldc, lower);
  } else {
    return false;
  }
  return true;
}

#define FASTWHITEN_INSTANTIATE(T)                                                                  \
  template bool own_gemm<T>(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, \
                            int64_t, T, T*, int64_t, bool);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
