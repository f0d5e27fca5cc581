// The eigensystem of a small symmetric matrix: tridiagonal form, then QL; in the namespace
// FASTWHITEN_ISA of the including file, after the two headers that it puts together.
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
int64_t eigen_work_size(int64_t n) {
  return (2 * n + 3) * eigen_stride<T>(n) + 3 * n + 2 * n * int64_t{sizeof(double) / sizeof(T)};
}

// The power of two by which the matrix is divided: its largest element is then in [1/2, 1).
template <class T>
int largest_exponent(int64_t count, const T* a) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  const auto larger = [](const auto& x, const auto& y) { return x > y ? x : y; };
  V most = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V v = load(a + i);
    most = larger(most, larger(v, -v));
  }
  alignas(kVectorBytes) T parts[lanes];
  store(parts, most);
  T largest = 0;
  for (const T& part : parts) largest = larger(largest, part);
  for (; i < count; ++i) largest = larger(largest, std::abs(a[i]));
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
bool symmetric_ql(int64_t n, T* a, T* values, T* work) {
  const int64_t K = eigen_stride<T>(n);
  T *first = work, *second = first + n * K, *vectors = second + n * K;
  auto* d = reinterpret_cast<double*>(vectors + 3 * K);  // [n]
  double* e = d + n;                                     // [n]
  T* tau = reinterpret_cast<T*>(e + n);
  auto* kept = reinterpret_cast<Rotation<T>*>(tau + n);  // [n]
  const int exponent = largest_exponent(n * n, a);
  const T scale = std::ldexp(T(1), -exponent / 2), rest = std::ldexp(T(1), exponent / 2 - exponent);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) first[i * K + j] = a[i * n + j] * scale * rest;
    fill(K - n, first + i * K + n, T(0));
  }
  tridiagonalize(n, K, first, d, e, second, tau, vectors);
  form_q(n, K, second, tau, first, vectors);
  fill(n * K, second, T(0));
  transpose(n, n, first, K, second, K);
  if (!implicit_ql(n, K, d, e, second, kept)) return false;
  write_sorted(n, K, d, second, tau, a, values);
  const T back = std::ldexp(T(1), exponent / 2),
          rest_back = std::ldexp(T(1), exponent - exponent / 2);
  for (int64_t j = 0; j < n; ++j) values[j] = values[j] * back * rest_back;
  return true;
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
