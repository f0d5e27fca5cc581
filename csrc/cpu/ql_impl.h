// T = Z diag(l) Z^T by QL with Wilkinson's shift, free of roots (Pal, Walker and Kahan); in the
// namespace FASTWHITEN_ISA of the including file, after kernels_impl.h.
//
// A sweep chases a bulge through the tridiagonal matrix by plane rotations, each of which waits for
// the one before, and turns two rows of z (the eigenvectors as rows). The squares of cosine, sine
// and off-diagonal element follow from those before by a division and three operations, about 22
// cycles of Zen 5; themselves, by a root and a division, about 36. The roots that z wants are taken
// aside, and rows turned in the same loop, in the shadow of the wait: n up to 8 vectors cost
// little. d and e are in float64, for which the squares of float32 are no small numbers. A block
// whose smaller end comes first is taken from its other end (QR instead of QL), which keeps small
// eigenvalues of graded matrices accurate. Convergence: e_i^2 <= eps^2 |d_i d_{i+1}|. (Parlett, The
// Symmetric Eigenvalue Problem, section 8.15; LAPACK's sterf.)

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

// Vectors of a row that are turned while the next rotation is computed, and how many of them stay
// in registers, of which AVX-512 has 32 and the others 16.
constexpr int kTurned = 8, kHeld = kVectorBytes == 64 ? 8 : 4;
// By how many rotations the rows are behind.
constexpr int64_t kBehind = 3;

template <class T>
struct Rotation {
  T c, s;
};

// z [rows apart by step, turned vectors]: kept[i] turns the rows i and i + 1, from the last of
// count down to 0. make(i) makes it, kBehind rotations before: its roots are done by then, and no
// product stands waiting for them in the way of the rotations that follow.
template <class T, int kVectors, class F>
[[gnu::always_inline]] inline void turn_rows(int64_t count, int64_t step, T* z,
                                             const Rotation<T>* kept, const F& make) {
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
    turn(kept[i]);
  }
#pragma GCC unroll 8
  for (int b = 0; b < held; ++b) store(row + b * lanes, upper[b]);
}

// turn_rows for a row of K elements: the first vectors while the rotations are made.
template <class T, class F>
[[gnu::always_inline]] inline void turn_all(int64_t K, int64_t count, int64_t step, T* z,
                                            Rotation<T>* kept, const F& make) {
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t vectors = K / lanes;
  if (vectors == 1) return turn_rows<T, 1>(count, step, z, kept, make);
  if (vectors == 2) return turn_rows<T, 2>(count, step, z, kept, make);
  if (vectors == 4) return turn_rows<T, 4>(count, step, z, kept, make);
  turn_rows<T, kTurned>(count, step, z, kept, make);
  for (int64_t c = kTurned * lanes; c < K; c += kTurned * lanes) {
    turn_rows<T, kTurned>(count, step, z + c, kept, [](int64_t) {});
  }
}

// The tridiagonal block that a run of QL works on: d and e with a step of 1, or of -1 from its end.
template <class T>
struct Block {
  double *d, *e;  // d[i * step]; e[i * step]: the square of what is between i and i + 1, positive
  T* z;           // row z[i * step * K]
  int64_t n, step, K;
  double& D(int64_t i) const { return d[i * step]; }
  double& E(int64_t i) const { return e[i * step]; }
};

// What is negligible beside a matrix whose largest element is near 1, squared: so large that the
// squares of what is not do not underflow where they are multiplied.
template <class T>
constexpr double kNegligible =
    std::is_same_v<T, float> ? std::numeric_limits<float>::min() : 1e-280;

// Whether an off-diagonal element, of square e, is not negligible beside its neighbours.
template <class T>
inline bool couples(double e, double d, double next) {
  constexpr double eps = std::numeric_limits<T>::epsilon() / 2;
  return e > eps * eps * std::abs(d * next) + kNegligible<T>;
}

// One sweep over the rows [l, m] of the block, of which m is not coupled to the next one. Returns
// the first row from l on of which that holds. cosine and sine: the squares, of the rotation
// before; gamma and pi = gamma / cosine (not its square), of square p: what is to be turned next.
template <class T>
int64_t sweep(const Block<T>& t, int64_t l, int64_t m, Rotation<T>* kept) {
  const double first = std::sqrt(t.E(l)), g = (t.D(l + 1) - t.D(l)) / (2 * first);
  const double root = std::sqrt(g * g + 1), shift = t.D(l) - first / (g + (g < 0 ? -root : root));
  double gamma = t.D(m) - shift, p = gamma * gamma, cosine = 1, sine = 1, done = 0;
  double sign = std::copysign(1.0, gamma), sign_before = 1;  // of cosines; sines are positive
  int64_t split = m;
  turn_all<T>(t.K, m - l, t.step * t.K, t.z + l * t.step * t.K, kept, [&](int64_t j) {
    const int64_t i = l + j;
    const bool stuck = !(p > 1e-10 * kNegligible<T>);  // a cosine of zero
    if (stuck) p = gamma = 0;
    const double e = t.E(i), d = t.D(i), sum = p + e, inverse = 1 / sum;
    const double number = fma(p, d - shift, -(e * gamma)), moved = number * inverse;
    const double turned = gamma + (d - moved), beside = sine * sum;
    t.D(i + 1) = turned;
    if (i + 1 < m) {
      t.E(i + 1) = beside;
      if (!couples<T>(beside, turned, done)) split = i + 1;
    }
    done = turned;
    double next = moved * (number / p), next_sign = std::copysign(sign, sign * moved);
    if (stuck) {
      next = cosine * e;
      next_sign = -sign_before;
    }
    cosine = p * inverse;
    sine = e * inverse;
    kept[j] = {static_cast<T>(sign) * std::sqrt(static_cast<T>(cosine)),
               std::sqrt(static_cast<T>(sine))};
    sign_before = sign;
    sign = next_sign;
    gamma = moved;
    p = next;
  });
  t.D(l) = shift + gamma;
  t.E(l) = sine * p;
  if (sign < 0) {
    T* row = t.z + l * t.step * t.K;
    for (int64_t k = 0; k < t.K; ++k) row[k] = -row[k];
  }
  return couples<T>(t.E(l), t.D(l), done) ? split : l;
}

// Diagonalises a block whose off-diagonal elements are not negligible; sweeps: how many are left.
template <class T>
bool run_block(const Block<T>& t, int64_t* sweeps, Rotation<T>* kept) {
  for (int64_t l = 0; l + 1 < t.n; ++l) {
    int64_t m = l;
    while (m + 1 < t.n && couples<T>(t.E(m), t.D(m), t.D(m + 1))) ++m;
    while (m > l) {
      if (m + 1 < t.n) t.E(m) = 0;
      if (--*sweeps < 0) return false;
      m = sweep(t, l, m, kept);
    }
  }
  return true;
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
  for (int64_t first = 0; first < n;) {
    int64_t last = first;
    while (last + 1 < n && couples<T>(e[last], d[last], d[last + 1])) ++last;
    const int64_t count = last - first + 1;
    Block<T> t = {d + first, e + first, z + first * K, count, 1, K};
    if (std::abs(d[last]) < std::abs(d[first])) {
      t = {d + last, e + last - 1, z + last * K, count, -1, K};
    }
    if (!run_block(t, &sweeps, kept)) return false;
    first = last + 1;
  }
  return true;
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
