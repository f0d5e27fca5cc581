// T = Z diag(l) Z^T by the implicit QL method with Wilkinson's shift; in the namespace
// FASTWHITEN_ISA of the including file, after kernels_impl.h.
//
// A sweep chases a bulge through the tridiagonal matrix by plane rotations, each of which waits for
// the one before (about 40 cycles: a square root, a division and four operations), and turns two
// rows of z (the eigenvectors as rows). The rows are turned in the same loop, in the shadow of that
// wait: for n up to 8 vectors they cost nothing.
// A block whose smaller end comes first is taken from its other end (QR instead of QL), which keeps
// small eigenvalues of graded matrices accurate. Convergence: e_i^2 <= eps^2 |d_i d_{i+1}|.
// (Golub and Van Loan, section 8.3.3; EISPACK tql2; the direction as in LAPACK's steqr.)

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

// Vectors of a row that are turned while the next rotation is computed, and how many of them stay
// in registers, of which AVX-512 has 32 and the others 16.
constexpr int kTurned = 8, kHeld = kVectorBytes == 64 ? 8 : 4;

template <class T>
struct Rotation {
  T c, s;
};

// z [rows apart by step, turned vectors]: the rows i and i + 1 are turned by rotation i, from i =
// count - 1 down to 0. next(i) gives the rotation, and is called before the one before is applied:
// products that wait for the same rotation as the next one's would be done first, being older.
template <class T, int kVectors, class F>
[[gnu::always_inline]] inline void turn_rows(int64_t count, int64_t step, T* z, const F& next) {
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
  Rotation<T> rotation = next(count - 1);
  for (int64_t i = count - 2; i >= 0; --i) {
    const Rotation<T> following = next(i);
    turn(rotation);
    rotation = following;
  }
  turn(rotation);
#pragma GCC unroll 8
  for (int b = 0; b < held; ++b) store(row + b * lanes, upper[b]);
}

// turn_rows for a row of K elements: the first vectors with rotations as they are computed, which
// are kept in `kept` when there are more.
template <class T, class F>
[[gnu::always_inline]] inline void turn_all(int64_t K, int64_t count, int64_t step, T* z,
                                            Rotation<T>* kept, const F& compute) {
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t vectors = K / lanes;
  if (vectors == 1) return turn_rows<T, 1>(count, step, z, compute);
  if (vectors == 2) return turn_rows<T, 2>(count, step, z, compute);
  if (vectors == 4) return turn_rows<T, 4>(count, step, z, compute);
  if (vectors == kTurned) return turn_rows<T, kTurned>(count, step, z, compute);
  turn_rows<T, kTurned>(count, step, z, [&](int64_t i) { return kept[i] = compute(i); });
  for (int64_t c = kTurned * lanes; c < K; c += kTurned * lanes) {
    turn_rows<T, kTurned>(count, step, z + c, [&](int64_t i) { return kept[i]; });
  }
}

// The tridiagonal block that a run of QL works on: d and e with a step of 1, or of -1 from its end.
template <class T>
struct Block {
  T *d, *e, *z;  // d[i * step], e[i * step] between i and i + 1, row z[i * step * K]
  int64_t n, step, K;
  T& D(int64_t i) const { return d[i * step]; }
  T& E(int64_t i) const { return e[i * step]; }
};

// One sweep over the rows [l, m] of the block. r, in its textbook form (d_i - d) s + 2 c b, is
// summed up before it is divided by the root, while the root is computed.
template <class T>
void sweep(const Block<T>& t, int64_t l, int64_t m, Rotation<T>* kept) {
  T g = (t.D(l + 1) - t.D(l)) / (2 * t.E(l));
  const T root = std::sqrt(g * g + 1);  // |g| < 1 / eps: else e_l had been negligible
  g = t.D(m) - t.D(l) + t.E(l) / (g + (g < 0 ? -root : root));
  T s = 1, c = 1, p = 0;
  turn_all<T>(t.K, m - l, t.step * t.K, t.z + l * t.step * t.K, kept, [&](int64_t j) {
    const int64_t i = l + j;
    const T e = t.E(i), f = s * e, b = c * e, d = t.D(i + 1) - p;
    const T square = fma(g, g, f * f);
    T r = fma(t.D(i) - d, f, 2 * b * g);
    if (square > std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon()) {
      const T inverse = inverse_root(square);
      if (i != m - 1) t.E(i + 1) = square * inverse;
      s = f * inverse;
      c = g * inverse;
      r *= inverse;
    } else {  // squares underflow: scale first; (0, 0) is turned by nothing
      const T scale = std::max(std::abs(f), std::abs(g));
      const T fs = scale > 0 ? f / scale : T(0), gs = scale > 0 ? g / scale : T(1);
      const T norm = std::sqrt(fs * fs + gs * gs);
      if (i != m - 1) t.E(i + 1) = scale * norm;
      s = fs / norm;
      c = gs / norm;
      r = (t.D(i) - d) * s + 2 * c * b;
    }
    p = s * r;
    t.D(i + 1) = d + p;
    g = fma(c, r, -b);
    return Rotation<T>{c, s};
  });
  t.D(l) -= p;
  t.E(l) = g;
}

// Diagonalises a block whose off-diagonal elements are not negligible; sweeps: how many are left.
template <class T>
bool run_block(const Block<T>& t, int64_t* sweeps, Rotation<T>* kept) {
  constexpr T eps = std::numeric_limits<T>::epsilon() / 2, tiny = std::numeric_limits<T>::min();
  for (int64_t l = 0; l + 1 < t.n;) {
    int64_t m = l;
    while (m + 1 < t.n && t.E(m) * t.E(m) > eps * eps * std::abs(t.D(m) * t.D(m + 1)) + tiny) ++m;
    if (m + 1 < t.n) t.E(m) = 0;
    if (m == l) {
      ++l;
      continue;
    }
    if (--*sweeps < 0) return false;
    sweep(t, l, m, kept);
  }
  return true;
}

// d [n], e [n] -> eigenvalues in d; z [n, K]: Q^T on entry, eigenvectors as rows on return.
template <class T>
bool implicit_ql(int64_t n, int64_t K, T* d, T* e, T* z, Rotation<T>* kept) {
  constexpr T eps = std::numeric_limits<T>::epsilon() / 2, tiny = std::numeric_limits<T>::min();
  int64_t sweeps = 30 * n;  // two per eigenvalue are usual
  for (int64_t first = 0; first < n;) {
    int64_t last = first;
    while (last + 1 < n && e[last] * e[last] > eps * eps * std::abs(d[last] * d[last + 1]) + tiny)
      ++last;
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
