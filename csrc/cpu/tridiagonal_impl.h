// A = Q T Q^T with T tridiagonal (Householder), and Q; in the namespace FASTWHITEN_ISA of the
// including file, after kernels_impl.h. No include guard and no includes, as there.
//
// Step k: the reflector H = I - tau v v^T turns row k of what is left into (e_k, 0, ...), and
// A -= v w^T + w v^T with w = tau A v - (tau^2 / 2)(v^T A v) v. One pass over A a step: the update
// of step k and the product A v of step k + 1 read and write each row once (2 n^3 flops in all, of
// which half is spent on the upper triangle: whole rows vectorise, triangles do not). Every sum
// runs over rows in order, so the bits depend on n alone.
//
// Rows have the stride K, a multiple of the vector; what lies past column n is zero and stays so.
// (Golub and Van Loan, Matrix Computations, 4th ed., sections 5.1.3 and 8.3.1.)

namespace fastwhiten::cpu::FASTWHITEN_ISA {
namespace {

template <class T>
void fill(int64_t n, T* p, T value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <class T>
T dot(int64_t n, const T* a, const T* b) {  // n a multiple of lanes
  constexpr int64_t lanes = Vector<T>::lanes;
  typename Vector<T>::type sum = {};
  for (int64_t i = 0; i < n; i += lanes) sum = fma(load(a + i), load(b + i), sum);
  T total = 0;
  for (int64_t i = 0; i < lanes; ++i) total += sum[i];
  return total;
}

// A reflector that maps x [K] to beta at `pivot`, zeros elsewhere. On return x = v with v_pivot
// = 1. Returns tau: 0 where there is nothing to do.
template <class T>
T make_reflector(int64_t pivot, int64_t K, T* x, T* beta) {
  const T alpha = x[pivot];
  x[pivot] = 0;
  const T square = dot(K, x, x);
  *beta = alpha;
  // Squares that underflow, wholly or in part, would give a reflector that is none. What is dropped
  // is below 1e-15 of the matrix, whose largest element is near 1.
  if (square <= std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon()) {
    fill(K, x, T(0));
    x[pivot] = 1;
    return 0;
  }
  const T norm = std::sqrt(alpha * alpha + square);
  *beta = alpha > 0 ? -norm : norm;
  const T scale = 1 / (alpha - *beta);
  for (int64_t i = 0; i < K; ++i) x[i] *= scale;
  x[pivot] = 1;
  return (*beta - alpha) / *beta;
}

// rows [i0, i1) of a, columns [c, c + kVectors * lanes): a -= v w^T + w v^T, then p += a next.
template <class T, int kVectors>
void update_and_multiply(int64_t i0, int64_t i1, int64_t K, int64_t c, const T* v, const T* w,
                         const T* next, T* a, T* p) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V vc[kVectors], wc[kVectors], sum[kVectors] = {};
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) {
    vc[b] = load(v + c + b * lanes);
    wc[b] = load(w + c + b * lanes);
  }
  for (int64_t i = i0; i < i1; ++i) {
    T* row = a + i * K + c;
    const V vi = broadcast(-v[i]), wi = broadcast(-w[i]), ni = broadcast(next[i]);
#pragma GCC unroll 8
    for (int b = 0; b < kVectors; ++b) {
      const V updated = fma(wi, vc[b], fma(vi, wc[b], load(row + b * lanes)));
      store(row + b * lanes, updated);
      sum[b] = fma(ni, updated, sum[b]);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) store(p + c + b * lanes, sum[b]);
}

// rows [i0, n) of q, columns [c, ..): q -= u y^T, then sum += next^T q. Products over whole
// columns.
template <class T, int kVectors>
void reflect_and_multiply(int64_t i0, int64_t n, int64_t K, int64_t c, const T* u, const T* y,
                          const T* next, T* q, T* p) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V yc[kVectors], sum[kVectors] = {};
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) yc[b] = load(y + c + b * lanes);
  for (int64_t i = i0; i < n; ++i) {
    T* row = q + i * K + c;
    const V ui = broadcast(-u[i]), ni = broadcast(next[i]);
#pragma GCC unroll 8
    for (int b = 0; b < kVectors; ++b) {
      const V updated = fma(ui, yc[b], load(row + b * lanes));
      store(row + b * lanes, updated);
      sum[b] = fma(ni, updated, sum[b]);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < kVectors; ++b) store(p + c + b * lanes, sum[b]);
}

// f<kVectors>(column) over the columns [first, K), in blocks of 4 vectors and then of one.
template <class T, class Four, class One>
void for_columns(int64_t first, int64_t K, const Four& four, const One& one) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = first / lanes * lanes;
  for (; c + 4 * lanes <= K; c += 4 * lanes) four(c);
  for (; c < K; c += lanes) one(c);
}

// a [n, K] -> d [n], e [n] (n - 1 used), reflectors [n, K] (row k: v of step k), tau [n].
// vectors [3 K]: scratch. a is overwritten.
template <class T>
void tridiagonalize(int64_t n, int64_t K, T* a, double* d, double* e, T* reflectors, T* tau,
                    T* vectors) {
  T *w = vectors, *p = vectors + K, *zeros = vectors + 2 * K;
  fill(3 * K, vectors, T(0));
  const T* v = zeros;
  for (int64_t k = 0; k < n; ++k) {
    T* row = a + k * K;
    // Its part of the update of step k - 1, of which the rows below get theirs further down.
    for (int64_t j = k; j < K; ++j) row[j] -= v[k] * w[j] + w[k] * v[j];
    d[k] = row[k];
    if (k == n - 1) break;
    T* next = reflectors + k * K;
    fill(k + 1, next, T(0));
    for (int64_t j = k + 1; j < K; ++j) next[j] = row[j];
    T beside;
    tau[k] = make_reflector(k + 1, K, next, &beside);
    e[k] = beside;
    for_columns<T>(
        k + 1, K, [&](int64_t c) { update_and_multiply<T, 4>(k + 1, n, K, c, v, w, next, a, p); },
        [&](int64_t c) { update_and_multiply<T, 1>(k + 1, n, K, c, v, w, next, a, p); });
    fill(k + 1, p, T(0));
    const T half = tau[k] * tau[k] * dot(K, p, next) / 2;
    for (int64_t j = 0; j < K; ++j) w[j] = tau[k] * p[j] - half * next[j];
    v = next;
  }
}

// q [n, K] = H_0 H_1 ... H_{n-2}, from the last to the first. vectors [4 K]: scratch.
template <class T>
void form_q(int64_t n, int64_t K, const T* reflectors, const T* tau, T* q, T* vectors) {
  fill(n * K, q, T(0));
  for (int64_t i = 0; i < n; ++i) q[i * K + i] = 1;
  T *u = vectors, *y = vectors + K, *p = vectors + 2 * K;
  fill(3 * K, vectors, T(0));
  if (n < 2) return;
  // y = v^T q for the last reflector: q is the identity there.
  for (int64_t j = 0; j < K; ++j) y[j] = reflectors[(n - 2) * K + j];
  for (int64_t k = n - 2; k >= 0; --k) {
    const T* v = reflectors + k * K;
    const T* next = k > 0 ? v - K : v;
    for (int64_t j = k + 1; j < n; ++j) u[j] = tau[k] * v[j];
    for_columns<T>(
        k + 1, K, [&](int64_t c) { reflect_and_multiply<T, 4>(k + 1, n, K, c, u, y, next, q, p); },
        [&](int64_t c) { reflect_and_multiply<T, 1>(k + 1, n, K, c, u, y, next, q, p); });
    // Row k of q is that of the identity still, and v of the next step is 1 there.
    T* const old = y;
    y = p;
    p = old;
    if (k > 0) y[k] += next[k];
  }
}

}  // namespace
}  // namespace fastwhiten::cpu::FASTWHITEN_ISA
