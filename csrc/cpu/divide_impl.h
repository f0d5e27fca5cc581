// The inner loops of divide.cpp; in the namespace FASTWHITEN_ISA of the including file, after
// eigen_impl.h. And the table of all that serves eigenproblems.

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

constexpr int kRowsAtOnce = kVectorBytes == 64 ? 8 : 4;  // sums that fit the registers

// out [kRows] = the sums over the lanes of v [kRows], which is overwritten. A stage halves vectors
// and rows: lanes with the bit kStep hold the upper rows from then on.
template <class T, int kRows, int kStep, size_t... I>
inline void sum_stage(typename Vector<T>::type* v, T* out, std::index_sequence<I...> all) {
  constexpr int lanes = Vector<T>::lanes, half = kRows > 1 ? kRows / 2 : 1;
#pragma GCC unroll 8
  for (int r = 0; r < half; ++r) {
    const auto a = v[r], b = v[kRows > 1 ? r + half : r];
    v[r] =
        __builtin_shufflevector(a, b, ((I & kStep) ? lanes + int(I) : int(I))...) +
        __builtin_shufflevector(a, b, ((I & kStep) ? lanes + int(I) - kStep : int(I) + kStep)...);
  }
  if constexpr (kStep > 1) return sum_stage<T, half, kStep / 2>(v, out, all);
}

template <class T, int kRows>
inline void sum_lanes(typename Vector<T>::type* v, T* out) {
  constexpr int lanes = Vector<T>::lanes;
  if constexpr (lanes < kRows) {
    sum_lanes<T, kRows / 2>(v, out);
    sum_lanes<T, kRows / 2>(v + kRows / 2, out + kRows / 2);
  } else {
    sum_stage<T, kRows, lanes / 2>(v, out, std::make_index_sequence<lanes>{});
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) out[r] = v[0][r * (lanes / kRows)];
  }
}

// ---- to tridiagonal form ----

// See EigenKernels::multiply_lower.
template <class T>
void multiply_lower(int64_t first, int64_t last, int64_t ld, const T* a, const T* v, T* p) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  constexpr int64_t block = lanes > kRowsAtOnce ? lanes : kRowsAtOnce;  // whole on the diagonal
  for (int64_t i = first; i < last; i += kRowsAtOnce) {
    const int64_t corner = i / block * block;
    const T* rows = a + i * ld;
    V sum[kRowsAtOnce] = {}, scale[kRowsAtOnce];
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) scale[r] = broadcast(v[i + r]);
    for (int64_t c = 0; c < corner; c += lanes) {
      const V right = load(v + c);
      V below = load(p + c);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const V x = load(rows + r * ld + c);
        sum[r] = fma(x, right, sum[r]);
        below = fma(x, scale[r], below);
      }
      store(p + c, below);
    }
    for (int64_t c = corner; c < corner + block; c += lanes) {
      const V right = load(v + c);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r) sum[r] = fma(load(rows + r * ld + c), right, sum[r]);
    }
    T sums[kRowsAtOnce];
    sum_lanes<T, kRowsAtOnce>(sum, sums);
    for (int r = 0; r < kRowsAtOnce; ++r) p[i + r] += sums[r];
  }
}

// out [rows, rounded up to kRowsAtOnce] = a [rows, K] v [K].
template <class T>
void dots(int64_t rows, int64_t K, const T* a, int64_t ld, const T* v, T* out) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
    V sum[kRowsAtOnce] = {};
    for (int64_t c = 0; c < K; c += lanes) {
      const V right = load(v + c);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r) {
        sum[r] = fma(load(a + (i + r) * ld + c), right, sum[r]);
      }
    }
    sum_lanes<T, kRowsAtOnce>(sum, out + i);
  }
}

template <class T, int kVectors>
void add_combination_at(int64_t rows, int64_t c, const T* scale, const T* a, int64_t ld, T* y) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V sum[kVectors];
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) sum[b] = load(y + c + b * lanes);
  for (int64_t r = 0; r < rows; ++r) {
    const V s = broadcast(scale[r]);
#pragma GCC unroll 8
    for (int b = 0; b < kVectors; ++b) sum[b] = fma(s, load(a + r * ld + c + b * lanes), sum[b]);
  }
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) store(y + c + b * lanes, sum[b]);
}

// y [K] += scale [rows] a [rows, K].
template <class T>
void add_combination(int64_t rows, int64_t K, const T* scale, const T* a, int64_t ld, T* y) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + 8 * lanes <= K; c += 8 * lanes) add_combination_at<T, 8>(rows, c, scale, a, ld, y);
  for (; c < K; c += lanes) add_combination_at<T, 1>(rows, c, scale, a, ld, y);
}

// See EigenKernels::next_reflector.
template <class T>
T next_reflector(int64_t k, int64_t pairs, int64_t ld, const T* left, const T* right, T* row, T* d,
                 T* e) {
  T scale[2 * kMostPairs];
  for (int64_t r = 0; r < 2 * pairs; ++r) scale[r] = right[r * ld + k];
  add_combination(2 * pairs, padded<T>(k + 1), scale, left, ld, row);
  *d = row[k];
  if (k == 0) return 0;
  fill(padded<T>(k + 1) - k, row + k, T(0));
  return make_reflector(k - 1, padded<T>(k), row, e);
}

// See EigenKernels::next_pair.
template <class T>
void next_pair(int64_t k, int64_t pairs, int64_t ld, const T* v, T tau, T* p, T* left, T* right) {
  const int64_t K = padded<T>(k);
  T scale[2 * kMostPairs + kRowsAtOnce];
  fill(K - k, p + k, T(0));
  dots(2 * pairs, K, right, ld, v, scale);
  add_combination(2 * pairs, K, scale, left, ld, p);
  const T half = tau * dot(K, p, v) / 2;
  left += 2 * pairs * ld;
  right += 2 * pairs * ld;
  for (int64_t i = 0; i < K; ++i) {
    const T w = tau * (p[i] - half * v[i]);
    left[i] = v[i];
    left[ld + i] = w;
    right[i] = -w;
    right[ld + i] = -v[i];
  }
}

// ---- the tridiagonal matrix ----

// See EigenKernels::leaf.
template <class T>
bool solve_leaf(int64_t n, double* d, double* e, T* rows, int64_t ld) {
  alignas(64) double z[kLargestLeaf * 64];
  Rotation<double> kept[kLargestLeaf + kTogether];
  const int64_t K = eigen_stride<double>(n);
  fill(n * K, z, 0.0);
  for (int64_t i = 0; i < n; ++i) z[i * K + i] = 1;
  if (!implicit_ql(n, K, d, e, z, kept)) return false;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) rows[i * ld + j] = static_cast<T>(z[i * K + j]);
  }
  return true;
}

// The secular function's sum w_i / (d_i - x), its derivative, and the sum of magnitudes, at
// x = base + tau. Differences of poles are exact to rounding, however close x is to one of them.
struct Secular {
  double value, slope, size;
};
inline Secular secular_sums(int64_t K, const double* d, const double* w, double base, double tau) {
  using V = Vector<double>::type;
  constexpr int64_t lanes = Vector<double>::lanes;
  const V zero = {}, origin = broadcast(base), shift = broadcast(tau);
  V sum[4] = {};
  for (int64_t i = 0; i < K; i += lanes) {
    const V inverse = 1 / ((load(d + i) - origin) - shift), term = load(w + i) * inverse;
    sum[0] += term;
    sum[1] = fma(term, inverse, sum[1]);
    sum[2] += term < zero ? -term : term;
  }
  double out[4];
  sum_lanes<double, 4>(sum, out);
  return {1 + out[0], out[1], 1 + out[2]};
}

// See EigenKernels::secular_root. Steps of the fixed weight method (Li, LAPACK working note 89):
// a function c + w_o / (d_o - x) + s / (d_q - x) that has the value and the slope at hand, q the
// pole beyond the root (the last root: before it). Bisection where they leave the bracket.
template <class T>
bool secular_root(int64_t k, int64_t n, const double* d, const double* w, double* base,
                  double* tau) {
  constexpr bool wide = std::is_same_v<T, double>;
  // In float32 the weights that the roots belong to may be off by a few roundings less.
  constexpr double tolerance =
      wide ? 4 * std::numeric_limits<T>::epsilon() : std::numeric_limits<T>::epsilon() / 32.0;
  const int64_t K = padded<double>(n);
  const bool last = k + 1 == n;
  double gap = 0;
  for (int64_t i = 0; last && i < n; ++i) gap += w[i];
  if (!last) gap = d[k + 1] - d[k];
  *base = d[k];
  *tau = n == 1 ? w[0] : gap / 2;
  if (n == 1) return true;
  Secular f = secular_sums(K, d, w, *base, *tau);
  int64_t origin = k, other = last ? k - 1 : k + 1;
  double low = f.value < 0 ? *tau : 0, high = f.value < 0 ? gap : *tau;
  if (!last && f.value < 0) {
    origin = k + 1, other = k;
    *base = d[k + 1];
    *tau = low = *tau - gap;
    high = 0;
  }
  for (int step = 0; step < 200; ++step) {
    if (std::abs(f.value) <= tolerance * (f.size + std::abs(*tau) * f.slope)) return true;
    (f.value < 0 ? low : high) = *tau;
    const double near = -*tau, between = d[other] - d[origin], far = between - *tau;
    const double c = f.value - far * f.slope + between * (w[origin] / near / near);
    const double a = (near + far) * f.value - near * far * f.slope, b = near * far * f.value;
    const double square = a * a - 4 * b * c, root = square > 0 ? std::sqrt(square) : 0;
    const double sign = last ? -1 : 1;
    const double change = sign * a <= 0 ? (a - sign * root) / (2 * c) : 2 * b / (a + sign * root);
    double next = *tau + change;
    if (!(next > low && next < high)) next = (low + high) / 2;
    if (next <= low || next >= high || next == *tau) return true;
    *tau = next;
    f = secular_sums(K, d, w, *base, *tau);
  }
  return false;
}

// See EigenKernels::secular_weights: |prod_j (x_j - d_i) / prod_{j != i} (d_j - d_i)|, four j a
// division: of a matrix near 1 the products do not underflow.
inline void secular_weights(int64_t first, int64_t last, int64_t n, const double* d,
                            const double* base, const double* tau, double* weights) {
  using V = Vector<double>::type;
  constexpr int64_t lanes = Vector<double>::lanes;
  const V zero = {}, one = broadcast(1.0);
  for (int64_t i = first; i < last; i += lanes) {
    const V pole = load(d + i);
    V product = one;
    for (int64_t j0 = 0; j0 < n; j0 += 4) {
      V above = one, below = one;
      for (int64_t j = j0; j < least(j0 + 4, n); ++j) {
        const V distance = broadcast(d[j]) - pole;
        above *= (broadcast(base[j]) - pole) + broadcast(tau[j]);
        below *= distance == zero ? one : distance;
      }
      product *= above / below;
    }
    double squares[lanes];
    store(squares, product);
    for (int64_t l = 0; l < lanes; ++l) weights[i + l] = std::sqrt(std::abs(squares[l]));
  }
}

// See EigenKernels::secular_vector.
template <class T>
void secular_vector(int64_t n, const double* d, const double* z, double base, double tau,
                    double* scratch, T* out) {
  using V = Vector<double>::type;
  constexpr int64_t lanes = Vector<double>::lanes;
  const V origin = broadcast(base), shift = broadcast(tau);
  V squares = {};
  for (int64_t i = 0; i < n; i += lanes) {
    const V x = load(z + i) / ((load(d + i) - origin) - shift);
    squares = fma(x, x, squares);
    store(scratch + i, x);
  }
  double square;
  sum_lanes<double, 1>(&squares, &square);
  const double scale = 1 / std::sqrt(square);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(scratch[i] * scale);
}

}  // namespace

template <class T>
const EigenKernels<T>& eigen() {
  static constexpr EigenKernels<T> table = {
      kMostQl<T>,         kMostDivided,       kAtOnce,       &eigen_work_size<T>, &symmetric_ql<T>,
      &next_reflector<T>, &multiply_lower<T>, &next_pair<T>, &solve_leaf<T>,      &secular_root<T>,
      &secular_weights,   &secular_vector<T>};
  return table;
}
template const EigenKernels<float>& eigen();
template const EigenKernels<double>& eigen();

}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
