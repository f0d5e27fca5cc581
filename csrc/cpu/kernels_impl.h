// The inner kernels, in the namespace FASTWHITEN_ISA of the including file, which has set the
// target and defines: kVectorBytes; kBlockRows x kBlockVectors, the block of c that multiply keeps
// in registers; fma(a, b, c) for its vectors and for numbers; stream(p, v), a store past the caches
// to an aligned address, and end_stream() after the last one; kFused, kMostQl and kMostDivided, for
// the tables at the end. No include guard and no includes here: all headers are read before the
// target is set, so that nothing shared with other files is compiled for it.
//
// multiply: c_ij += sum_l a_il b_lj, one broadcast of a and kBlockVectors vectors of b for
// kBlockRows * kBlockVectors fused multiply-adds. Nothing is packed: callers hold tiles that fit
// the L1 or L2 cache.

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t lanes = kVectorBytes / sizeof(T);
};

template <class T>
inline typename Vector<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::type*>(p);
}
template <class T>
inline void store(T* p, typename Vector<T>::type v) {
  *reinterpret_cast<typename Vector<T>::type*>(p) = v;
}
template <class T>
inline typename Vector<T>::type broadcast(T s) {
  return s - typename Vector<T>::type{};
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// One block [kRows, kVectors * lanes] of c; valid: how many of its columns exist.
template <class T, int kRows, int kVectors>
void multiply_block(int64_t k, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t ldb,
                    T* c, int64_t ldc, Into into, int64_t valid) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V sum[kRows][kVectors] = {};
  for (int64_t l = 0; l < k; ++l, a += a_k, b += ldb) {
    V right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V left = broadcast(a[i * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + i * ldc + v * lanes;
      if (valid >= (v + 1) * lanes) {
        if (into == Into::kPast && reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) {
          stream(to, sum[i][v]);
        } else {
          store(to, into == Into::kAdd ? load(to) + sum[i][v] : sum[i][v]);
        }
      } else {
        // Through memory: an element of sum by a variable index would keep all of sum in memory,
        // and the loop above would write it there every time (half the speed, with GCC 12).
        alignas(kVectorBytes) T columns[lanes];
        store(columns, sum[i][v]);
        for (int64_t j = 0; j < lanes && v * lanes + j < valid; ++j) {
          to[j] = into == Into::kAdd ? to[j] + columns[j] : columns[j];
        }
      }
    }
  }
}

template <class T, int kRows>
void multiply_rows(int64_t rows, int64_t vectors, int64_t k, const T* a, int64_t a_row, int64_t a_k,
                   const T* b, int64_t ldb, T* c, int64_t ldc, Into into, int64_t valid) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_rows<T, kRows - 1>(rows, vectors, k, a, a_row, a_k, b, ldb, c, ldc, into,
                                         valid);
    }
  }
  if constexpr (kBlockVectors > 2) {
    if (vectors == 3) {
      return multiply_block<T, kRows, 3>(k, a, a_row, a_k, b, ldb, c, ldc, into, valid);
    }
  }
  if (vectors == 2) {
    multiply_block<T, kRows, 2>(k, a, a_row, a_k, b, ldb, c, ldc, into, valid);
  } else {
    multiply_block<T, kRows, 1>(k, a, a_row, a_k, b, ldb, c, ldc, into, valid);
  }
}

// How many vectors wide the next block is, of those that remain: four are better split evenly than
// 3 + 1.
inline int64_t block_vectors(int64_t remaining) {
  if (kBlockVectors > 2 && remaining >= 3 && remaining != 4) return 3;
  return remaining >= 2 ? 2 : 1;
}

// The next count lines of 64 bytes of every tensor.
inline void fetch(Ahead& ahead, int64_t count) {
  for (; count > 0 && ahead.runs > 0; --count) {
    for (const char* from : ahead.from) {
      if (from != nullptr) __builtin_prefetch(from + 64 * ahead.line, 0, 2);
    }
    if (++ahead.line < ahead.lines) continue;
    ahead.line = 0;
    --ahead.runs;
    for (const char*& from : ahead.from) {
      if (from != nullptr) from += ahead.stride;
    }
  }
}

template <class T>
void multiply_fetching(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_k,
                       const T* b, int64_t ldb, T* c, int64_t ldc, Into into, bool lower,
                       Ahead& ahead) {
  constexpr int64_t lanes = Vector<T>::lanes;
  constexpr int64_t columns = kBlockVectors * lanes;
  const int64_t blocks = (m + kBlockRows - 1) / kBlockRows * ((n + columns - 1) / columns);
  const int64_t left = ahead.runs * ahead.lines - ahead.line;
  const int64_t lines = left > 0 ? left / (blocks * ahead.products--) + 1 : 0;
  for (int64_t j = 0; j < n;) {
    const int64_t vectors = block_vectors((n - j + lanes - 1) / lanes);
    // Columns outside, rows inside: the block's columns of b stay in the L1 cache.
    for (int64_t i = lower ? j / kBlockRows * kBlockRows : 0; i < m; i += kBlockRows) {
      if (lines > 0) fetch(ahead, lines);
      multiply_rows<T, kBlockRows>(m - i, vectors, k, a + i * a_row, a_row, a_k, b + j, ldb,
                                   c + i * ldc + j, ldc, into, n - j);
    }
    j += vectors * lanes;
  }
  if (into == Into::kPast) end_stream();
}

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_k, const T* b,
              int64_t ldb, T* c, int64_t ldc, Into into, bool lower) {
  Ahead none{};
  multiply_fetching(m, n, k, a, a_row, a_k, b, ldb, c, ldc, into, lower, none);
}

// Butterfly stage kStep of the transpose of a lanes x lanes block held in registers: pairs of rows
// that are kStep apart exchange their off-diagonal kStep x kStep blocks.
template <class T, int kStep, size_t... I>
inline void exchange(typename Vector<T>::type* rows, std::index_sequence<I...>) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    if (i & kStep) continue;
    const V upper = rows[i], lower = rows[i + kStep];
    rows[i] =
        __builtin_shufflevector(upper, lower, ((I & kStep) ? lanes + int(I) - kStep : int(I))...);
    rows[i + kStep] =
        __builtin_shufflevector(upper, lower, ((I & kStep) ? lanes + int(I) : int(I) + kStep)...);
  }
  if constexpr (kStep > 1) exchange<T, kStep / 2>(rows, std::index_sequence<I...>{});
}

template <class T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t ld_from, T* to,
               int64_t ld_to) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t i = 0; i < rows; i += lanes) {
    for (int64_t j = 0; j < columns; j += lanes) {
      if (i + lanes <= rows && j + lanes <= columns) {
        typename Vector<T>::type block[lanes];
#pragma GCC unroll 16
        for (int64_t r = 0; r < lanes; ++r) block[r] = load(from + (i + r) * ld_from + j);
        exchange<T, lanes / 2>(block, std::make_index_sequence<lanes>{});
#pragma GCC unroll 16
        for (int64_t r = 0; r < lanes; ++r) store(to + (j + r) * ld_to + i, block[r]);
        continue;
      }
      for (int64_t r = i; r < least(i + lanes, rows); ++r) {
        for (int64_t c = j; c < least(j + lanes, columns); ++c)
          to[c * ld_to + r] = from[r * ld_from + c];
      }
    }
  }
}

// Long sums are made of short ones: the rounding error of a running sum grows with its length, of a
// sum of sums with its two lengths.
constexpr int64_t kShortSum = 32;

// The element at p, or the vector from there on, as U.
template <class U, class In>
inline U read(const In* p) {
  if constexpr (std::is_arithmetic_v<U>) {
    return static_cast<U>(*p);
  } else {
    using T = std::remove_reference_t<decltype(U{}[0])>;
    alignas(kVectorBytes) T run[Vector<T>::lanes];
    for (int64_t k = 0; k < Vector<T>::lanes; ++k) run[k] = static_cast<T>(p[k]);
    return load(run);
  }
}

// sums [kCount of U] += the sums over rows first <= i < last of term(U(), i, j).
template <class U, int kCount, class T, class F>
inline void add_block_sums(int64_t first, int64_t last, int64_t j, const F& term, T* sums) {
  constexpr int64_t width = sizeof(U) / sizeof(T);
  U block[kCount] = {};
  for (int64_t i = first; i < last; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) block[v] += term(U(), i, j + v * width);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    T* to = sums + j + v * width;
    if constexpr (width == 1) {
      *to += block[v];
    } else {
      store(to, load(to) + block[v]);
    }
  }
}

// sums [n] += the sums over rows i < m of term(U(), i, j): row i's element j where U is T, or its
// vector from j on. In blocks of rows and of columns.
template <class T, class F>
inline void add_column_sums(int64_t m, int64_t n, const F& term, T* sums) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t i = 0; i < m; i += kShortSum) {
    const int64_t end = least(m, i + kShortSum);
    int64_t j = 0;
    for (; j + 4 * lanes <= n; j += 4 * lanes) add_block_sums<V, 4>(i, end, j, term, sums);
    for (; j + lanes <= n; j += lanes) add_block_sums<V, 1>(i, end, j, term, sums);
    for (; j < n; ++j) add_block_sums<T, 1>(i, end, j, term, sums);
  }
}

template <class T>
void add_rows(int64_t m, int64_t n, const T* a, int64_t ld, T* sums) {
  const auto term = [=](auto type, int64_t i, int64_t j) {
    return read<decltype(type)>(a + i * ld + j);
  };
  add_column_sums<T>(m, n, term, sums);
}

// ---- tiles: runs of contiguous elements, of channels (rows) or of positions (planes). ----

template <class In, class T>
inline T value(const In* p, int64_t i) {
  return static_cast<T>(p[i]);
}

template <Scale kScale, class T>
inline T shifted(T v, T shift, T scale) {
  if constexpr (kScale == Scale::kNone) return v - shift;
  if constexpr (kScale == Scale::kResult) return (v - shift) * scale;
  return v - shift * scale;
}

// Planes are read in runs, a plane apart from each other: no hardware sees the next one coming.
// What no product has fetched (Ahead) is asked for this many channels before it is summed up.
constexpr int64_t kAhead = 8;

template <class In>
inline void prefetch_run(const In* from, int64_t length) {
  const char* p = reinterpret_cast<const char*>(from);
  for (int64_t b = 0; b < length * static_cast<int64_t>(sizeof(In)); b += 64) {
    __builtin_prefetch(p + b, 0, 2);
  }
}

// Calls f(row, length) for the pieces of rows [r0, r0 + m) that lie in one image each.
template <class F>
inline void for_segments(const Layout& s, int64_t r0, int64_t m, const F& f) {
  for (int64_t r = r0; r < r0 + m;) {
    const int64_t piece = least(s.length - r % s.length, r0 + m - r);
    f(r, piece);
    r += piece;
  }
}

template <Scale kScale, class In, class T>
void load_mode(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
               const T* scale, T* buffer, int64_t ld) {
  const int64_t D = s.width;
  if (!s.planes()) {
    for (int64_t i = 0; i < m; ++i) {
      const In* from = x + (r0 + i) * s.channels + g * D;  // [D]
      T* to = buffer + i * ld;                             // [D]
      const T q = kScale == Scale::kNone ? T(1) : scale[r0 + i];
      for (int64_t c = 0; c < D; ++c) to[c] = shifted<kScale>(value<In, T>(from, c), shift[c], q);
    }
    return;
  }
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    const In* first = x + (r / s.length * s.channels + g * D) * s.length + r % s.length;
    for (int64_t c = 0; c < D; ++c) {
      const In* from = first + c * s.length;  // [length]
      T* to = buffer + c * ld + (r - r0);     // [length]
      const T b = shift[c];
      for (int64_t l = 0; l < length; ++l) {
        const T q = kScale == Scale::kNone ? T(1) : scale[r + l];
        to[l] = shifted<kScale>(value<In, T>(from, l), b, q);
      }
    }
  });
}

template <class In, class T>
void load_tile(const Layout& s, Scale mode, const In* x, int64_t g, int64_t r0, int64_t m,
               const T* shift, const T* scale, T* buffer, int64_t ld) {
  if (scale == nullptr || mode == Scale::kNone) {
    load_mode<Scale::kNone>(s, x, g, r0, m, shift, scale, buffer, ld);
  } else if (mode == Scale::kResult) {
    load_mode<Scale::kResult>(s, x, g, r0, m, shift, scale, buffer, ld);
  } else {
    load_mode<Scale::kShift>(s, x, g, r0, m, shift, scale, buffer, ld);
  }
}

// load_mode for planes, transposed: blocks of lanes channels and as many positions.
template <Scale kScale, class In, class T>
void load_transposed(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
                     const T* scale, T* buffer, int64_t ld) {
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t D = s.width;
  const auto element = [&](const In* from, int64_t c, int64_t r) {
    return shifted<kScale>(value<In, T>(from, 0), shift[c],
                           kScale == Scale::kNone ? T(1) : scale[r]);
  };
  // Short pieces: what is written, half a line at a time with AVX2, stays in the L1 cache.
  constexpr int64_t kPositions = 64;
  const auto piece = [&](const In* first, int64_t r, int64_t length) {  // first: of channel 0
    T* rows = buffer + (r - r0) * ld;                                   // [length, D]
    for (int64_t c = 0; c < D; c += lanes) {
      const int64_t channels = least(lanes, D - c);
      int64_t l = 0;
      for (; channels == lanes && l + lanes <= length; l += lanes) {
        typename Vector<T>::type block[lanes];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          alignas(kVectorBytes) T run[lanes];
          for (int64_t k = 0; k < lanes; ++k) {
            run[k] = element(first + (c + i) * s.length + l + k, c + i, r + l + k);
          }
          block[i] = load(run);
        }
        exchange<T, lanes / 2>(block, std::make_index_sequence<lanes>{});
#pragma GCC unroll 16
        for (int64_t k = 0; k < lanes; ++k) store(rows + (l + k) * ld + c, block[k]);
      }
      for (; l < length; ++l) {
        for (int64_t i = c; i < c + channels; ++i) {
          rows[l * ld + i] = element(first + i * s.length + l, i, r + l);
        }
      }
    }
  };
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    const In* first = x + (r / s.length * s.channels + g * D) * s.length + r % s.length;
    for (int64_t l = 0; l < length; l += kPositions) {
      piece(first + l, r + l, least(kPositions, length - l));
    }
  });
}

template <class In, class T>
void load_rows(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
               const T* scale, T* buffer, int64_t ld) {
  if (!s.planes()) {
    load_tile(s, Scale::kResult, x, g, r0, m, shift, scale, buffer, ld);
  } else if (scale == nullptr) {
    load_transposed<Scale::kNone>(s, x, g, r0, m, shift, scale, buffer, ld);
  } else {
    load_transposed<Scale::kResult>(s, x, g, r0, m, shift, scale, buffer, ld);
  }
}

template <class Out, class T>
void store_tile(const Layout& s, const T* buffer, int64_t ld, int64_t g, int64_t r0, int64_t m,
                Out* out) {
  const int64_t D = s.width;
  if (!s.planes()) {
    for (int64_t i = 0; i < m; ++i) {
      const T* from = buffer + i * ld;                // [D]
      Out* to = out + (r0 + i) * s.channels + g * D;  // [D]
      for (int64_t c = 0; c < D; ++c) to[c] = static_cast<Out>(from[c]);
    }
    return;
  }
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    Out* first = out + (r / s.length * s.channels + g * D) * s.length + r % s.length;
    for (int64_t c = 0; c < D; ++c) {
      const T* from = buffer + c * ld + (r - r0);  // [length]
      Out* to = first + c * s.length;              // [length]
      for (int64_t l = 0; l < length; ++l) to[l] = static_cast<Out>(from[l]);
    }
  });
}

// The sum over l < length of term(U(), l): the element l where U is T, or the vector from l on.
template <class T, class F>
inline T run_sum(int64_t length, const F& term) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes, kSums = 4;
  T total = 0;
  for (int64_t l = 0; l < length;) {
    const int64_t end = least(length, l + kSums * lanes * kShortSum);
    V sum[kSums] = {};
    for (; l + kSums * lanes <= end; l += kSums * lanes) {
#pragma GCC unroll 4
      for (int v = 0; v < kSums; ++v) sum[v] += term(V(), l + v * lanes);
    }
    for (; l + lanes <= end; l += lanes) sum[0] += term(V(), l);
    alignas(kVectorBytes) T parts[lanes];
    store(parts, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (int64_t k = 0; l < end; ++l, ++k) parts[k] += term(T(), l);
    for (int64_t k = lanes / 2; k > 0; k /= 2) {
      for (int64_t j = 0; j < k; ++j) parts[j] += parts[j + k];
    }
    total += parts[0];
  }
  return total;
}

template <bool kWeighted, class In, class T>
void add_shifted_sums(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m,
                      const T* shift, const T* p, T* sums) {
  const int64_t D = s.width;
  if (!s.planes()) {
    const In* from = x + r0 * s.channels + g * D;  // [m, D] of row stride C
    const auto term = [=](auto type, int64_t i, int64_t c) {
      using U = decltype(type);
      const U v = read<U>(from + i * s.channels + c) - read<U>(shift + c);
      return kWeighted ? v * p[r0 + i] : v;
    };
    return add_column_sums<T>(m, D, term, sums);
  }
  for_segments(s, r0, m, [&](int64_t r, int64_t length) {
    const In* first = x + (r / s.length * s.channels + g * D) * s.length + r % s.length;
    for (int64_t c = 0; c < D; ++c) {
      prefetch_run(first + (c + kAhead) * s.length, length);
      const In* from = first + c * s.length;
      const T b = shift[c];
      sums[c] += run_sum<T>(length, [=](auto type, int64_t l) {
        using U = decltype(type);
        const U v = read<U>(from + l) - b;
        return kWeighted ? v * read<U>(p + r + l) : v;
      });
    }
  });
}

template <class In, class T>
void add_sums(const Layout& s, const In* x, int64_t g, int64_t r0, int64_t m, const T* shift,
              const T* p, T* sums) {
  const auto add = p == nullptr ? &add_shifted_sums<false, In, T> : &add_shifted_sums<true, In, T>;
  add(s, x, g, r0, m, shift, p, sums);
}

}  // namespace

template <class T>
const ProductKernels<T>& products() {
  static constexpr ProductKernels<T> table = {kFused, &multiply<T>, &multiply_fetching<T>,
                                              &transpose<T>, &add_rows<T>};
  return table;
}
template const ProductKernels<float>& products();
template const ProductKernels<double>& products();

template <class In, class T>
const TileKernels<In, T>& tiles() {
  static constexpr TileKernels<In, T> table = {&load_tile<In, T>, &load_rows<In, T>,
                                               &store_tile<In, T>, &add_sums<In, T>};
  return table;
}
#define FASTWHITEN_TILES(In, T) template const TileKernels<In, T>& tiles<In, T>();
FASTWHITEN_FOR_TILE_TYPES(FASTWHITEN_TILES)
#undef FASTWHITEN_TILES

}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
