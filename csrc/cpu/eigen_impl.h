// The eigensystems of small symmetric matrices: tridiagonal form, then QL; in the namespace
// FASTWHITEN_ISA of the including file, after the headers that it puts together.
//
// Scaled by a power of two to a largest element near 1, so that no square overflows.

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

// The row stride: as many vectors as turn_all knows.
template <class T>
int64_t eigen_stride(int64_t n) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t vectors = 1; vectors <= kTurned; vectors *= 2) {
    if (n <= vectors * lanes) return vectors * lanes;
  }
  return (n + kTurned * lanes - 1) / (kTurned * lanes) * (kTurned * lanes);
}

template <class T>
int64_t eigen_work_size(int64_t n, int64_t count) {
  constexpr int64_t doubles = sizeof(double) / sizeof(T);
  return ((count + 1) * n + 3) * eigen_stride<T>(n) + 2 * doubles * n * (1 + kLanes) + n +
         2 * n * kLanes + 2 * (n + kTogether);
}

// The power of two by which the matrix is divided: its largest element is then in [1/2, 1).
template <class T>
int largest_exponent(int64_t count, const T* a) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V most = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V v = load(a + i), size = v < V{} ? -v : v;
    most = size > most ? size : most;
  }
  alignas(kVectorBytes) T parts[lanes];
  store(parts, most);
  T largest = 0;
  for (const T& part : parts) largest = part > largest ? part : largest;
  for (; i < count; ++i) largest = std::abs(a[i]) > largest ? std::abs(a[i]) : largest;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return exponent;
}

// values [n] and the rows of z in ascending order, into a [n, n], each of norm 1: a thousand
// rotations leave a row's norm off by a few roundings, three times as far as its angles.
template <class T>
void write_sorted(int64_t n, int64_t K, double* d, const T* z, T* row_of, T* a, T* values) {
  for (int64_t i = 0; i < n; ++i) row_of[i] = static_cast<T>(i);
  for (int64_t j = 0; j < n; ++j) {
    int64_t least = j;
    for (int64_t i = j + 1; i < n; ++i) least = d[i] < d[least] ? i : least;
    const double value = d[least];
    const T index = row_of[least];
    d[least] = d[j];
    row_of[least] = row_of[j];
    const T* row = z + static_cast<int64_t>(index) * K;
    const T norm = std::sqrt(dot(K, row, row));
    for (int64_t i = 0; i < n; ++i) a[j * n + i] = row[i] / norm;
    values[j] = static_cast<T>(value);
  }
}

// See EigenKernels::solve.
template <class T>
void symmetric_ql(int64_t n, int64_t count, T* a, T* values, T* work, bool* solved) {
  const int64_t K = eigen_stride<T>(n);
  T *first = work, *vectors = first + n * K, *z = vectors + 3 * K;  // z [count, n, K]
  auto* d = reinterpret_cast<double*>(z + count * n * K);           // [n]
  double *e = d + n, *diagonals = e + n, *beside = diagonals + n * kLanes;
  T* tau = reinterpret_cast<T*>(beside + n * kLanes);  // [n]
  T *cosines = tau + n, *sines = cosines + n * kLanes;
  auto* kept = reinterpret_cast<Rotation<T>*>(sines + n * kLanes);  // [n + kTogether]
  const bool together = kAtOnce > 1 && count >= kLeastAtOnce;
  Lanes<T> lanes = {n, K, count, diagonals, beside, cosines, sines, {}};
  if (together) fill(2 * n * kLanes, diagonals, 1.0);  // what lanes without a matrix read
  int exponents[kLanes];
  const auto finish = [&](int64_t k) {
    T* const l = values + k * n;
    write_sorted(n, K, d, z + k * n * K, tau, a + k * n * n, l);
    const int half = exponents[k] / 2;
    const T back = std::ldexp(T(1), half), rest_back = std::ldexp(T(1), exponents[k] - half);
    for (int64_t j = 0; j < n; ++j) l[j] = l[j] * back * rest_back;
  };
  for (int64_t k = 0; k < count; ++k) {
    const T* from = a + k * n * n;
    T* to = z + k * n * K;
    const int exponent = exponents[k] = largest_exponent(n * n, from);
    const T scale = std::ldexp(T(1), -exponent / 2),
            rest = std::ldexp(T(1), exponent / 2 - exponent);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) first[i * K + j] = from[i * n + j] * scale * rest;
      fill(K - n, first + i * K + n, T(0));
    }
    tridiagonalize(n, K, first, d, e, to, tau, vectors);
    form_q(n, K, to, tau, first, vectors);
    fill(n * K, to, T(0));
    transpose(n, n, first, K, to, K);
    if (together) {
      lanes.set(k, d, e, to);
    } else if ((solved[k] = implicit_ql(n, K, d, e, to, kept))) {
      finish(k);
    }
  }
  if (!together) return;
  while (lanes.sweep()) {
  }
  for (int64_t k = 0; k < count; ++k) {
    solved[k] = lanes.lane[k].sweeps >= 0;
    lanes.get(k, d);
    if (solved[k]) finish(k);
  }
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
