// T = Z diag(l) Z^T by the implicit QL method with Wilkinson's shift; in the namespace
// FASTWHITEN_ISA of the including file, after kernels_impl.h.
//
// A sweep chases a bulge through the tridiagonal matrix by plane rotations, each of which waits for
// the one before (about 45 cycles), and turns two rows of z (the eigenvectors as rows). The rows
// are turned in the same loop, in the shadow of that wait: for n up to 8 vectors they cost nothing.
// A block whose smaller end comes first is taken from its other end (QR instead of QL), which keeps
// small eigenvalues of graded matrices accurate. Convergence: e_i^2 <= eps^2 |d_i d_{i+1}|.
// (Golub and Van Loan, section 8.3.3; EISPACK tql2; the direction as in LAPACK's steqr.)

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

constexpr int kTurned = 8;  // vectors of a row that are turned while the next rotation is computed

template <class T>
struct Rotation {
  T c, s;
};

// z [rows apart by step, turned vectors]: the rows first + i and first + i + 1 are turned by
// rotation i, from i = count - 1 down to 0. next(i) gives the rotation.
template <class T, int kVectors, class F>
inline void turn_rows(int64_t count, int64_t step, T* z, F&& next) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V upper[kVectors];
  T* row = z + count * step;
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) upper[b] = load(row + b * lanes);
  for (int64_t i = count - 1; i >= 0; --i) {
    const Rotation<T> r = next(i);
    T* below = row;
    row -= step;
    const V c = broadcast(r.c), s = broadcast(r.s);
#pragma GCC unroll 8
    for (int b = 0; b < kVectors; ++b) {
      const V lower = load(row + b * lanes);
      store(below + b * lanes, fma(s, lower, c * upper[b]));
      upper[b] = fma(c, lower, -(s * upper[b]));
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) store(row + b * lanes, upper[b]);
}

// turn_rows for a row of K elements: the first vectors with rotations as they are computed, which
// are kept in `kept` when there are more.
template <class T, class F>
void turn_all(int64_t K, int64_t count, int64_t step, T* z, Rotation<T>* kept, F&& compute) {
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

// One sweep over the rows [l, m] of the block: rotation j = count - 1 first, 0 last, then finish.
template <class T>
struct Sweep {
  Block<T> t;
  int64_t l, count;
  T g, s = 1, c = 1, p = 0;

  Sweep(const Block<T>& block, int64_t first, int64_t m) : t(block), l(first), count(m - first) {
    g = (t.D(l + 1) - t.D(l)) / (2 * t.E(l));
    const T root = std::sqrt(g * g + 1);  // |g| < 1 / eps: else e_l had been negligible
    g = t.D(m) - t.D(l) + t.E(l) / (g + (g < 0 ? -root : root));
  }
  int64_t step() const { return t.step * t.K; }
  T* rows() const { return t.z + l * step(); }

  Rotation<T> operator()(int64_t j) {
    const int64_t i = l + j;
    const T f = s * t.E(i), b = c * t.E(i);
    const T square = f * f + g * g;
    if (square > std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon()) {
      const T inverse = inverse_root(square);
      if (j != count - 1) t.E(i + 1) = square * inverse;
      s = f * inverse;
      c = g * inverse;
    } else {  // squares underflow: scale first; (0, 0) is turned by nothing
      const T scale = std::max(std::abs(f), std::abs(g));
      const T fs = scale > 0 ? f / scale : T(0), gs = scale > 0 ? g / scale : T(1);
      const T norm = std::sqrt(fs * fs + gs * gs);
      if (j != count - 1) t.E(i + 1) = scale * norm;
      s = fs / norm;
      c = gs / norm;
    }
    g = t.D(i + 1) - p;
    const T r = (t.D(i) - g) * s + 2 * c * b;
    p = s * r;
    t.D(i + 1) = g + p;
    g = c * r - b;
    return {c, s};
  }

  void finish() {
    t.D(l) -= p;
    t.E(l) = g;
  }
};

// d [n], e [n] -> eigenvalues in d; z [n, K]: Q^T on entry, eigenvectors as rows on return.
template <class T>
class Run {
 public:
  Run(int64_t n, int64_t K, T* d, T* e, T* z) : n_(n), K_(K), d_(d), e_(e), z_(z), left_(30 * n) {}

  // The next sweep; none when all is diagonal, or when it does not converge.
  std::optional<Sweep<T>> next() {
    while (true) {
      for (; l_ + 1 < t_.n; ++l_) {
        int64_t m = l_;
        while (m + 1 < t_.n && !negligible(t_.E(m), t_.D(m), t_.D(m + 1))) ++m;
        if (m + 1 < t_.n) t_.E(m) = 0;
        if (m == l_) continue;
        if (--left_ < 0) return {};
        return Sweep<T>(t_, l_, m);
      }
      if (end_ == n_) return {};
      const int64_t first = end_;
      int64_t last = first;
      while (last + 1 < n_ && !negligible(e_[last], d_[last], d_[last + 1])) ++last;
      end_ = last + 1;
      l_ = 0;
      t_ = {d_ + first, e_ + first, z_ + first * K_, end_ - first, 1, K_};
      if (std::abs(d_[last]) < std::abs(d_[first])) {
        t_ = {d_ + last, e_ + last - 1, z_ + last * K_, end_ - first, -1, K_};
      }
    }
  }
  bool converged() const { return left_ >= 0; }

 private:
  static bool negligible(T e, T before, T after) {
    constexpr T eps = std::numeric_limits<T>::epsilon() / 2, tiny = std::numeric_limits<T>::min();
    return !(e * e > eps * eps * std::abs(before * after) + tiny);
  }

  int64_t n_, K_;
  T *d_, *e_, *z_;
  int64_t left_;  // sweeps; two per eigenvalue are usual
  // What comes before end_ is diagonal but for the block t_, and that from its row l_ on.
  int64_t end_ = 0, l_ = 0;
  Block<T> t_ = {nullptr, nullptr, nullptr, 0, 1, 0};
};

// False: it did not converge.
template <class T>
bool implicit_ql(int64_t n, int64_t K, T* d, T* e, T* z, Rotation<T>* kept) {
  Run<T> run(n, K, d, e, z);
  while (auto sweep = run.next()) {
    turn_all<T>(K, sweep->count, sweep->step(), sweep->rows(), kept, *sweep);
    sweep->finish();
  }
  return run.converged();
}

// Rows [kVectors] that are kept in memory between two rotations.
template <class T, int kVectors>
inline void turn_two(const Rotation<T>& r, T* row, T* below) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  const V c = broadcast(r.c), s = broadcast(r.s);
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) {
    const V lower = load(row + b * lanes), upper = load(below + b * lanes);
    store(below + b * lanes, fma(s, lower, c * upper));
    store(row + b * lanes, fma(c, lower, -(s * upper)));
  }
}

template <class T, int kVectors>
void sweep_both(Sweep<T>* a, Sweep<T>* b) {
  int64_t i = a->count, j = b->count;
  for (; i > 0 && j > 0; --i, --j) {
    const Rotation<T> of_a = (*a)(i - 1), of_b = (*b)(j - 1);
    turn_two<T, kVectors>(of_a, a->rows() + (i - 1) * a->step(), a->rows() + i * a->step());
    turn_two<T, kVectors>(of_b, b->rows() + (j - 1) * b->step(), b->rows() + j * b->step());
  }
  if (i > 0) turn_rows<T, kVectors>(i, a->step(), a->rows(), *a);
  if (j > 0) turn_rows<T, kVectors>(j, b->step(), b->rows(), *b);
  a->finish();
  b->finish();
}

template <class T, int kVectors>
void run_both(Run<T>* a, Run<T>* b) {
  auto of_a = a->next(), of_b = b->next();
  while (of_a && of_b) {
    sweep_both<T, kVectors>(&*of_a, &*of_b);
    of_a = a->next();
    of_b = b->next();
  }
  if (!of_a) {
    std::swap(a, b);
    std::swap(of_a, of_b);
  }
  for (; of_a; of_a = a->next()) {
    turn_rows<T, kVectors>(of_a->count, of_a->step(), of_a->rows(), *of_a);
    of_a->finish();
  }
}

// implicit_ql of two matrices whose rows have at most kTurned vectors, to the same bits.
template <class T>
void implicit_ql_of_both(int64_t K, Run<T>* a, Run<T>* b) {
  const int64_t vectors = K / Vector<T>::lanes;
  if (vectors == 1) return run_both<T, 1>(a, b);
  if (vectors == 2) return run_both<T, 2>(a, b);
  if (vectors == 4) return run_both<T, 4>(a, b);
  run_both<T, kTurned>(a, b);
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
