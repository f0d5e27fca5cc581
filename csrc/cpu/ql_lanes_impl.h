// QL of several matrices at once, one in each lane of a vector of float64; in the namespace
// FASTWHITEN_ISA of the including file, after ql_impl.h.
//
// A rotation waits for the one before it by a division and some steps, for small matrices most of
// the time: here as many as there are lanes wait together. They sweep in step, row by row; a lane
// whose block [l, m] does not have the row keeps what it has. The arithmetic of a lane is that of
// ql_impl.h, bit for bit: nobody sees who else was there.

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

// Not 8 with AVX-512: a division of 8 takes longer than one of 4, and groups are often few.
// The baseline selects by three operations: with it, one after another is faster.
constexpr int64_t kLanes = kVectorBytes == 16 ? 2 : kMostAtOnce, kAtOnce = kFused ? kLanes : 1;
typedef double Wide __attribute__((vector_size(kLanes * 8), aligned(8), may_alias));

inline Wide load_wide(const double* p) { return *reinterpret_cast<const Wide*>(p); }
inline void store_wide(double* p, Wide v) { *reinterpret_cast<Wide*>(p) = v; }
inline Wide all(double s) { return s - Wide{}; }
inline Wide magnitude(Wide v) { return v < Wide{} ? -v : v; }

template <class T>
struct Lanes {
  typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  struct Lane {
    int64_t l, m, sweeps;  // the next sweep is over the rows [l, m]; sweeps: how many are left
    T* z;                  // row i of the eigenvectors: z + i * step
    int64_t step;          // K, or -K where the matrix is taken from its other end
  };

  int64_t n, K, used;
  double *d, *e;  // [n, kLanes]: diagonals, and the squares of what is beside them
  T *c, *s;       // [n, kLanes]: the rotations of a sweep
  Lane lane[kLanes];

  // Lane k: a tridiagonal matrix, and Q^T [n, K].
  void set(int64_t k, const double* diagonal, const double* beside, T* z) {
    const bool reversed = std::abs(diagonal[n - 1]) < std::abs(diagonal[0]);
    bool flipped = false;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = reversed ? n - 1 - i : i;
      d[row * kLanes + k] = diagonal[i];
      for (int64_t j = 0; flipped && j < K; ++j) z[i * K + j] = -z[i * K + j];
      if (i + 1 == n) break;
      e[(reversed ? row - 1 : row) * kLanes + k] = beside[i] * beside[i];
      flipped = flipped != (beside[i] < 0);
    }
    e[(n - 1) * kLanes + k] = 0;
    lane[k] = {-1, -1, 30 * n, reversed ? z + (n - 1) * K : z, reversed ? -K : K};
  }

  // d [n] of lane k, in the order of the rows of its z.
  void get(int64_t k, double* diagonal) const {
    for (int64_t i = 0; i < n; ++i) {
      diagonal[i] = d[(lane[k].step < 0 ? n - 1 - i : i) * kLanes + k];
    }
  }

  // Whether lane k has a sweep to do: over its rows [l, m].
  bool next(int64_t k) {
    Lane& t = lane[k];
    const auto coupled = [&](int64_t i) {
      return couples<T>(e[i * kLanes + k], d[i * kLanes + k], d[(i + 1) * kLanes + k]);
    };
    while (t.m == t.l) {
      if (t.l + 1 >= n) return false;
      t.m = ++t.l;
      while (t.m + 1 < n && coupled(t.m)) ++t.m;
    }
    e[t.m * kLanes + k] = 0;
    return --t.sweeps >= 0;
  }

  // One sweep of every lane that has one to do; false: none has.
  bool sweep() {
    double first[kLanes], here[kLanes], above[kLanes], last[kLanes], begin[kLanes], end[kLanes];
    int64_t bottom = n, top = 0;
    for (int64_t k = 0; k < kLanes; ++k) {
      const Lane& t = lane[k];
      const bool works = k < used && next(k);
      first[k] = works ? std::sqrt(e[t.l * kLanes + k]) : 1;
      here[k] = works ? d[t.l * kLanes + k] : 0;
      above[k] = works ? d[(t.l + 1) * kLanes + k] : 0;
      last[k] = works ? d[t.m * kLanes + k] : 0;
      begin[k] = static_cast<double>(works ? t.l : n);
      end[k] = static_cast<double>(works ? t.m : 0);
      bottom = works && t.l < bottom ? t.l : bottom;
      top = works && t.m > top ? t.m : top;
    }
    if (top == 0) return false;
    double shift[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) {
      const double g = (above[k] - here[k]) / (2 * first[k]), root = std::sqrt(fma(g, g, 1.0));
      shift[k] = here[k] - first[k] / (g + (g < 0 ? -root : root));
    }
    const Wide zero = {}, one = all(1), l = load_wide(begin), m = load_wide(end);
    const Wide shifts = load_wide(shift);
    Wide gamma = load_wide(last) - shifts, p = gamma * gamma, cosine = one, sine = zero;
    Wide sign = gamma < zero ? -one : one, sign_before = one, split = m, done = zero;
    Wide d_above = load_wide(d + top * kLanes), e_above = load_wide(e + top * kLanes);
    auto before = zero < zero;  // none
    constexpr double eps = std::numeric_limits<T>::epsilon() / 2;
    for (int64_t i = top - 1; i >= bottom; --i) {
      const Wide at = all(static_cast<double>(i));
      const Wide d_here = load_wide(d + i * kLanes), e_here = load_wide(e + i * kLanes);
      if (!all_above(p, kTiny<T>)) {  // a cosine of zero
        for (int64_t k = 0; k < kLanes; ++k) {
          if (p[k] > kTiny<T> || at[k] < begin[k]) continue;
          p[k] = kTiny<T>;
          gamma[k] = std::sqrt(kTiny<T> * cosine[k]);
          sign[k] = sign_before[k];
        }
      }
      const Wide sum = p + e_here, inverse = 1 / (sum * p);
      const Wide number = fma(p, d_here - shifts, -(e_here * gamma)), moved = number * p * inverse;
      const Wide turned = gamma + (d_here - moved), beside = sine * sum, share = p * inverse;
      const auto active = (at >= l) & (at < m), inner = active & before;
      const Wide bound = fma(all(eps * eps), magnitude(turned * done), all(kNegligible<T>));
      store_wide(d + (i + 1) * kLanes, active ? turned : d_above);
      store_wide(e + (i + 1) * kLanes, inner ? beside : e_above);
      split = (inner & ~(beside > bound)) ? at + 1 : split;
      before = active;
      d_above = d_here;
      e_above = e_here;
      const Wide cosine_here = p * share, sine_here = e_here * share;
      *reinterpret_cast<Narrow*>(c + i * kLanes) =
          __builtin_convertvector(cosine_here * sign, Narrow);
      *reinterpret_cast<Narrow*>(s + i * kLanes) = __builtin_convertvector(sine_here, Narrow);
      done = active ? turned : done;
      cosine = active ? cosine_here : cosine;
      sine = active ? sine_here : sine;
      sign_before = active ? sign : sign_before;
      sign = (active & (moved < zero)) ? -sign : sign;
      gamma = active ? moved : gamma;
      p = active ? number * number * inverse : p;
    }
    take_roots((top - bottom) * kLanes, c + bottom * kLanes);
    take_roots((top - bottom) * kLanes, s + bottom * kLanes);
    for (int64_t k = 0; k < used; ++k) {
      Lane& t = lane[k];
      if (end[k] == 0) continue;
      const double below = shift[k] + gamma[k], beside = sine[k] * p[k];
      d[t.l * kLanes + k] = below;
      e[t.l * kLanes + k] = beside;
      const T *from_c = c + t.l * kLanes + k, *from_s = s + t.l * kLanes + k;
      const auto rotation = [=](int64_t i) {
        return Rotation<T>{from_c[i * kLanes], from_s[i * kLanes]};
      };
      T* row = t.z + t.l * t.step;
      turn_all<T>(K, t.m - t.l, t.step, row, rotation, [](int64_t) {});
      for (int64_t j = 0; sign[k] < 0 && j < K; ++j) row[j] = -row[j];
      t.m = couples<T>(beside, below, done[k]) ? static_cast<int64_t>(split[k]) : t.l;
    }
    return true;
  }
};

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
