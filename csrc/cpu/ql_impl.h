// T = Z diag(l) Z^T by QL with Wilkinson's shift, free of roots (Pal, Walker and Kahan); in the
// namespace FASTWHITEN_ISA of the including file, after kernels_impl.h.
//
// A sweep chases a bulge through the tridiagonal matrix by plane rotations, each of which waits for
// the one before, and turns two rows of z (the eigenvectors as rows). The squares of cosine, sine
// and off-diagonal element follow from those before by a division and three operations, about 22
// cycles; themselves, by a root and a division, about 36. The roots that z wants are taken aside,
// a few at a time: each keeps the divider from the division that all wait for. Rows are turned in
// the same loop, in the shadow of the wait: n up to 8 vectors cost little. d and e are in float64,
// for which the squares of float32 are no small numbers. A matrix whose smaller end comes first is
// taken from its other end (QR instead of QL), which keeps small eigenvalues of graded ones
// accurate. Convergence: e_i^2 <= eps^2 |d_i d_{i+1}|. (Parlett, The Symmetric Eigenvalue Problem,
// section 8.15; LAPACK's sterf.)

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

// Vectors of a row that are turned while the next rotation is computed, and how many of them stay
// in registers, of which AVX-512 has 32 and the others 16.
constexpr int kTurned = 8, kHeld = kVectorBytes == 64 ? 8 : 4;

template <class T>
struct Rotation {
  T c, s;
};
// Of how many rotations roots are taken at once, and by how many the rows are behind: no product
// stands waiting for roots in the way of the rotations that follow.
constexpr int64_t kTogether = 2, kBehind = kTogether + 3;

// p [count]: roots, with the signs of what they are of.
template <class T>
[[gnu::always_inline]] inline void take_roots(int64_t count, T* p) {
  for (int64_t i = 0; i < count; ++i) p[i] = std::copysign(std::sqrt(std::abs(p[i])), p[i]);
}

// z [rows apart by step, turned vectors]: rotation(i) turns the rows i and i + 1, from the last of
// count down to 0. make(i) makes it, kBehind rotations before.
template <class T, int kVectors, class R, class F>
[[gnu::always_inline]] inline void turn_rows(int64_t count, int64_t step, T* z, const R& rotation,
                                             const F& make) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  constexpr int held = kVectors < kHeld ? kVectors : kHeld;
  V upper[held];  // the rest of the upper row is in memory
  T* row = z + count * step;
#pragma GCC unroll 8
  for (int b = 0; b < held; ++b) upper[b] = load(row + b * lanes);
  const auto turn = [&](const Rotation<T>& r) {
    T* below = row;
    row -= step;
    const V c = broadcast(r.c), s = broadcast(r.s);
#pragma GCC unroll 8
    for (int b = 0; b < kVectors; ++b) {
      const V lower = load(row + b * lanes), above = b < held ? upper[b] : load(below + b * lanes);
      store(below + b * lanes, fma(s, lower, c * above));
      const V turned = fma(c, lower, -(s * above));
      if (b < held) {
        upper[b] = turned;
      } else {
        store(row + b * lanes, turned);
      }
    }
  };
  for (int64_t i = count - 1; i >= 0 && i >= count - kBehind; --i) make(i);
  for (int64_t i = count - 1; i >= 0; --i) {
    if (i >= kBehind) make(i - kBehind);
    turn(rotation(i));
  }
#pragma GCC unroll 8
  for (int b = 0; b < held; ++b) store(row + b * lanes, upper[b]);
}

// turn_rows for a row of K elements: the first vectors while the rotations are made.
template <class T, class R, class F>
[[gnu::always_inline]] inline void turn_all(int64_t K, int64_t count, int64_t step, T* z,
                                            const R& rotation, const F& make) {
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t vectors = K / lanes;
  if (vectors == 1) return turn_rows<T, 1>(count, step, z, rotation, make);
  if (vectors == 2) return turn_rows<T, 2>(count, step, z, rotation, make);
  if (vectors == 4) return turn_rows<T, 4>(count, step, z, rotation, make);
  turn_rows<T, kTurned>(count, step, z, rotation, make);
  for (int64_t c = kTurned * lanes; c < K; c += kTurned * lanes) {
    turn_rows<T, kTurned>(count, step, z + c, rotation, [](int64_t) {});
  }
}

// The tridiagonal matrix: d and e with a step of 1, or of -1 from its end.
template <class T>
struct Tridiagonal {
  double *d, *e;  // d[i * step]; e[i * step]: the square of what is between i and i + 1
  T* z;           // row z[i * step * K]
  int64_t step, K;
  double& D(int64_t i) const { return d[i * step]; }
  double& E(int64_t i) const { return e[i * step]; }
};

// What is negligible beside a matrix whose largest element is near 1, squared: so large that the
// squares of what is not do not underflow where they are multiplied.
template <class T>
constexpr double kNegligible =
    std::is_same_v<T, float> ? std::numeric_limits<float>::min() : 1e-130;
// What p is taken for where it is less.
template <class T>
constexpr double kTiny = 1e-10 * kNegligible<T>;

// Whether an off-diagonal element, of square e, is not negligible beside its neighbours.
template <class T>
inline bool couples(double e, double d, double next) {
  constexpr double eps = std::numeric_limits<T>::epsilon() / 2;
  return e > fma(eps * eps, std::abs(d * next), kNegligible<T>);
}

// One sweep over the rows [l, m], coupled to each other, of which m is not coupled to the next one.
// Returns the first row from l on of which that holds. cosine and sine: the squares, of the
// rotation before; gamma and pi = gamma / cosine (not its square), of square p: what is to be
// turned next.
template <class T>
int64_t sweep(const Tridiagonal<T>& t, int64_t l, int64_t m, Rotation<T>* kept) {
  const double first = std::sqrt(t.E(l)), g = (t.D(l + 1) - t.D(l)) / (2 * first);
  const double root = std::sqrt(fma(g, g, 1.0));
  const double shift = t.D(l) - first / (g + (g < 0 ? -root : root));
  double gamma = t.D(m) - shift, p = gamma * gamma, cosine = 1, sine = 0, done = 0;
  double sign = gamma < 0 ? -1 : 1, sign_before = 1;  // of cosines; sines are positive
  int64_t split = m;
  const auto make = [&](int64_t j) {
    const int64_t i = l + j;
    if (!(p > kTiny<T>)) {  // a cosine of zero
      p = kTiny<T>;
      gamma = std::sqrt(kTiny<T> * cosine);
      sign = sign_before;
    }
    const double e = t.E(i), d = t.D(i), sum = p + e, inverse = 1 / (sum * p);
    const double number = fma(p, d - shift, -(e * gamma)), moved = number * p * inverse;
    const double turned = gamma + (d - moved), beside = sine * sum, share = p * inverse;
    t.D(i + 1) = turned;
    if (i + 1 < m) {
      t.E(i + 1) = beside;
      if (!couples<T>(beside, turned, done)) split = i + 1;
    }
    done = turned;
    cosine = p * share;
    sine = e * share;
    kept[j] = {static_cast<T>(cosine * sign), static_cast<T>(sine)};
    if (j % kTogether == 0) take_roots(2 * kTogether, &kept[j].c);
    sign_before = sign;
    sign = moved < 0 ? -sign : sign;
    gamma = moved;
    p = number * number * inverse;
  };
  turn_all<T>(
      t.K, m - l, t.step * t.K, t.z + l * t.step * t.K, [&](int64_t j) { return kept[j]; }, make);
  t.D(l) = shift + gamma;
  t.E(l) = sine * p;
  if (sign < 0) {
    T* row = t.z + l * t.step * t.K;
    for (int64_t k = 0; k < t.K; ++k) row[k] = -row[k];
  }
  return couples<T>(t.E(l), t.D(l), done) ? split : l;
}

// d [n], e [n] -> eigenvalues in d; z [n, K]: Q^T on entry, eigenvectors as rows on return. The
// largest element of the matrix is near 1.
template <class T>
bool implicit_ql(int64_t n, int64_t K, double* d, double* e, T* z, Rotation<T>* kept) {
  int64_t sweeps = 30 * n;  // two per eigenvalue are usual
  bool flipped = false;
  for (int64_t i = 0; i + 1 < n; ++i) {
    flipped = flipped != (e[i] < 0);
    for (int64_t k = 0; flipped && k < K; ++k) z[(i + 1) * K + k] = -z[(i + 1) * K + k];
    e[i] *= e[i];
  }
  Tridiagonal<T> t = {d, e, z, 1, K};
  if (std::abs(d[n - 1]) < std::abs(d[0])) t = {d + n - 1, e + n - 2, z + (n - 1) * K, -1, K};
  for (int64_t l = 0; l + 1 < n; ++l) {
    int64_t m = l;
    while (m + 1 < n && couples<T>(t.E(m), t.D(m), t.D(m + 1))) ++m;
    while (m > l) {
      if (m + 1 < n) t.E(m) = 0;
      if (--sweeps < 0) return false;
      m = sweep(t, l, m, kept);
    }
  }
  return true;
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
