// Finds BLAS and LAPACK in libtorch_cpu at run time, and calls them; aten:: where they are absent.
//
// Row-major data is column-major data of the transpose: C = A B is asked for as C^T = B^T A^T, and
// the lower triangle of a row-major matrix is the upper triangle for LAPACK.
#include "linear_algebra.h"

#include <algorithm>
#include <cstdlib>
#include <exception>

#include "../common/stable.h"
#include "gemm.h"
#include "workspace.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace fastwhiten::cpu {
namespace {

template <class T>
using Gemm = void (*)(const char*, const char*, const int*, const int*, const int*, const T*,
                      const T*, const int*, const T*, const int*, const T*, T*, const int*);
template <class T>
using Syevd = void (*)(const char*, const char*, const int*, T*, const int*, T*, T*, const int*,
                       int*, const int*, int*);
template <class T>
using Potrf = void (*)(const char*, const int*, T*, const int*, int*);
template <class T>
using Trsm = void (*)(const char*, const char*, const char*, const char*, const int*, const int*,
                      const T*, const T*, const int*, T*, const int*);

template <class T>
struct Routines {
  Gemm<T> gemm = nullptr;
  Syevd<T> syevd = nullptr;
  Potrf<T> potrf = nullptr;
  Trsm<T> trsm = nullptr;
};

struct Provider {
  Routines<float> single;
  Routines<double> twice;
  int (*set_threads)(int) = nullptr;  // MKL_Set_Num_Threads_Local, this thread only
  std::string name = "aten";
};

#if !defined(_WIN32)
template <class F>
void look_up(void* library, const char* symbol, F* function, std::string* found) {
  *function = reinterpret_cast<F>(dlsym(library, symbol));
  if (*function != nullptr) *found += std::string(" ") + symbol;
}

// A handle on the library that defines a symbol we are linked to: torch loads its libraries
// RTLD_LOCAL, so that the global scope does not show them.
void* open_libtorch_cpu() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&aoti_torch_empty_strided), &info) == 0) return nullptr;
  return dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_NOW);
}
#endif

Provider find_provider() {
  Provider p;
#if !defined(_WIN32)
  const char* disabled = std::getenv("FASTWHITEN_DISABLE_LAPACK_LOOKUP");
  if (disabled != nullptr && std::string(disabled) == "1") return p;
  void* library = open_libtorch_cpu();
  if (library == nullptr) return p;
  std::string found;
  look_up(library, "sgemm_", &p.single.gemm, &found);
  look_up(library, "dgemm_", &p.twice.gemm, &found);
  look_up(library, "ssyevd_", &p.single.syevd, &found);
  look_up(library, "dsyevd_", &p.twice.syevd, &found);
  look_up(library, "spotrf_", &p.single.potrf, &found);
  look_up(library, "dpotrf_", &p.twice.potrf, &found);
  look_up(library, "strsm_", &p.single.trsm, &found);
  look_up(library, "dtrsm_", &p.twice.trsm, &found);
  look_up(library, "MKL_Set_Num_Threads_Local", &p.set_threads, &found);
  if (!found.empty()) p.name = "libtorch_cpu:" + found;
#endif
  return p;
}

const Provider& provider() {
  static const Provider p = find_provider();  // the environment is read once
  return p;
}

template <class T>
const Routines<T>& routines();
template <>
const Routines<float>& routines() {
  return provider().single;
}
template <>
const Routines<double>& routines() {
  return provider().twice;
}

// ---- aten fallbacks. They work on views of raw memory and return fresh tensors. ----

template <class T>
Tensor view(const T* p, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[2] = {rows, columns};
  const int64_t strides[2] = {row_stride, column_stride};
  const auto code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(scalar_type_of<T>));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<T*>(p), 2, sizes, strides, 0, code, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <size_t kSlots>
void call(const char* op, StableIValue (&stack)[kSlots]) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
}

Tensor take(StableIValue value) { return torch::stable::detail::to<Tensor>(value); }

// Element (i, j) of a 2-d result, whatever its strides.
template <class T>
void copy_out(const Tensor& from, T* to, int64_t ld) {
  const T* p = data<T>(from);
  for (int64_t i = 0; i < from.size(0); ++i) {
    for (int64_t j = 0; j < from.size(1); ++j) {
      to[i * ld + j] = p[i * from.stride(0) + j * from.stride(1)];
    }
  }
}

template <class T>
void aten_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
               const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const Tensor va = ta ? view(a, m, k, 1, lda) : view(a, m, k, lda, 1);
  const Tensor vb = tb ? view(b, k, n, 1, ldb) : view(b, k, n, ldb, 1);
  StableIValue stack[2] = {torch::stable::detail::from(va), torch::stable::detail::from(vb)};
  call("aten::mm", stack);
  const Tensor product = take(stack[0]);
  const T* p = data<T>(product);  // [m, n] contiguous: mm allocates its result so
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T& out = c[i * ldc + j];
      out = beta == T(0) ? alpha * p[i * n + j] : alpha * p[i * n + j] + beta * out;
    }
  }
}

template <class T>
bool aten_syevd(int64_t n, T* a, T* eigenvalues) {
  StableIValue stack[2] = {torch::stable::detail::from(view(a, n, n, n, 1)),
                           torch::stable::detail::from(std::string("L"))};
  try {
    call("aten::linalg_eigh", stack);
  } catch (const std::exception&) {
    return false;  // aten throws where LAPACK reports that it did not converge
  }
  const Tensor values = take(stack[0]);
  const Tensor vectors = take(stack[1]);
  std::copy_n(data<T>(values), n, eigenvalues);
  const T* p = data<T>(vectors);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < n; ++i) a[j * n + i] = p[i * vectors.stride(0) + j * vectors.stride(1)];
  }
  return true;
}

template <class T>
bool aten_cholesky(int64_t n, T* a) {
  StableIValue stack[3] = {torch::stable::detail::from(view(a, n, n, n, 1)),
                           torch::stable::detail::from(false), torch::stable::detail::from(false)};
  call("aten::linalg_cholesky_ex", stack);
  const Tensor factor = take(stack[0]);
  const Tensor info = take(stack[1]);
  copy_out(factor, a, n);
  return *data<int32_t>(info) == 0;
}

template <class T>
void aten_inverse(int64_t n, int64_t ld, const T* factor, T* inverse) {  // inverse: I on entry
  StableIValue stack[5] = {torch::stable::detail::from(view(factor, n, n, ld, 1)),
                           torch::stable::detail::from(view(inverse, n, n, ld, 1)),
                           torch::stable::detail::from(false), torch::stable::detail::from(true),
                           torch::stable::detail::from(false)};
  call("aten::linalg_solve_triangular", stack);
  const Tensor solution = take(stack[0]);  // L^{-1}
  const T* p = data<T>(solution);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      inverse[i * ld + j] = p[j * solution.stride(0) + i * solution.stride(1)];
    }
  }
}

// X = L^{-T} of the leading n rows and columns; X holds I on entry. By halves: of the blocks of L
// and X, X12 = -X11 L21^T X22. Two thirds of the flops of a solve, and products.
template <class T>
void invert(int64_t n, int64_t ld, const T* L, T* X) {
  constexpr int64_t kSolved = 128;  // at most this order at once
  if (n > kSolved) {
    const int64_t top = (n / 2 + 15) / 16 * 16, bottom = n - top;
    const T *L21 = L + top * ld, *L22 = L21 + top;
    T *X12 = X + top, *X22 = X12 + top * ld;
    invert(top, ld, L, X);
    invert(bottom, ld, L22, X22);
    Buffer<T> product(top * bottom);
    gemm(true, false, top, bottom, bottom, T(1), L21, ld, X22, ld, T(0), product.get(), bottom);
    gemm(false, false, top, bottom, top, T(-1), X, ld, product.get(), bottom, T(0), X12, ld);
    return;
  }
  const auto f = routines<T>().trsm;
  if (f == nullptr) return aten_inverse(n, ld, L, X);
  const int n32 = static_cast<int>(n), ld32 = static_cast<int>(ld);
  const T one = 1;
  // Column-major, the factor is L^T: (L^T)^T Y = I gives Y = L^{-1}, which row-major reads as
  // L^{-T}.
  f("L", "U", "T", "N", &n32, &n32, &one, L, &ld32, X, &ld32);
}

}  // namespace

template <class T>
void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (own_gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, false)) return;
  const auto f = routines<T>().gemm;
  if (f == nullptr) return aten_gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  const int m32 = static_cast<int>(m), n32 = static_cast<int>(n), k32 = static_cast<int>(k);
  const int lda32 = static_cast<int>(lda), ldb32 = static_cast<int>(ldb);
  const int ldc32 = static_cast<int>(ldc);
  f(tb ? "T" : "N", ta ? "T" : "N", &n32, &m32, &k32, &alpha, b, &ldb32, a, &lda32, &beta, c,
    &ldc32);
}

template <class T>
bool syevd(int64_t n, T* a, T* eigenvalues) {
  const auto f = routines<T>().syevd;
  if (f == nullptr) return aten_syevd(n, a, eigenvalues);
  const int n32 = static_cast<int>(n);
  // LAPACK's documented minimum for eigenvectors; more is not used.
  const int real_size = 1 + 6 * n32 + 2 * n32 * n32, integer_size = 3 + 5 * n32;
  // Kept between calls, and aligned: off a cache line MKL takes 15 % longer at n = 64, 5 to 10 % at
  // 512.
  Buffer<T> real(real_size);
  Buffer<int> integer(integer_size);
  // Measured with MKL on full storage: 'L' is 5 % faster at n = 64, 'U' 10 % faster from 256 on.
  constexpr int kUpperFrom = 192;
  int info = 0;
  f("V", n32 < kUpperFrom ? "L" : "U", &n32, a, &n32, eigenvalues, real.get(), &real_size,
    integer.get(), &integer_size, &info);
  return info == 0;
}

template <class T>
bool cholesky(int64_t n, T* a) {
  const auto f = routines<T>().potrf;
  if (f == nullptr) return aten_cholesky(n, a);
  const int n32 = static_cast<int>(n);
  int info = 0;
  f("U", &n32, a, &n32, &info);
  return info == 0;
}

template <class T>
void inverse_transposed(int64_t n, const T* factor, T* inverse) {
  std::fill_n(inverse, n * n, T(0));
  for (int64_t i = 0; i < n; ++i) inverse[i * n + i] = T(1);
  invert(n, n, factor, inverse);
}

std::string linear_algebra_provider() { return provider().name; }

namespace {
thread_local int64_t living = 0;
}
bool SerialLinearAlgebra::lives() { return living > 0; }

SerialLinearAlgebra::SerialLinearAlgebra() : previous_(0) {
  ++living;
  if (provider().set_threads != nullptr) previous_ = provider().set_threads(1);
}
SerialLinearAlgebra::~SerialLinearAlgebra() {
  --living;
  if (provider().set_threads != nullptr) provider().set_threads(previous_);
}

#define FASTWHITEN_INSTANTIATE(T)                                                              \
  template void gemm<T>(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, \
                        int64_t, T, T*, int64_t);                                              \
  template bool syevd<T>(int64_t, T*, T*);                                                     \
  template bool cholesky<T>(int64_t, T*);                                                      \
  template void inverse_transposed<T>(int64_t, const T*, T*);
FASTWHITEN_INSTANTIATE(float)
FASTWHITEN_INSTANTIATE(double)
#undef FASTWHITEN_INSTANTIATE

}  // namespace fastwhiten::cpu
