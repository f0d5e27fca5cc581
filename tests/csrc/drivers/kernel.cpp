// Launches one compiled kernel on the machine (machine/host.h), on arrays that its arguments
// describe: tools/kernel_model.py.
//
//   kernel NAME GX,GY,GZ BX,BY,BZ SHARED ARGUMENT...
//
// Arguments in the order of the kernel's parameters, fields of structs one after another:
//   i32:5 i64:5 u8:1 f32:0.5 f64:0.5    numbers
//   null                                a null pointer
//   f32[4096]:normal                    a pointer to an array: zero (unless it is said), one,
//                                       normal, uniform, spd(D), ortho(D)
//   a=f32[4096]:spd(64)                 the same, which is written to the file "a" afterwards
//   pad:4                               bytes
#include <array>
#include <cmath>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>

#include "emulator/types.h"
#include "machine/host.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

std::size_t size_of(const std::string& type) {
  if (type == "f64" || type == "i64") return 8;
  if (type == "f32" || type == "i32") return 4;
  if (type == "f16" || type == "bf16") return 2;
  if (type == "u8") return 1;
  throw std::runtime_error("expected a type such as f32, got " + type);
}

void put(std::uint8_t* to, const std::string& type, double value) {
  const auto copy = [&](auto x) { std::memcpy(to, &x, sizeof(x)); };
  if (type == "f64") copy(value);
  if (type == "i64") copy(static_cast<std::int64_t>(value));
  if (type == "f32") copy(static_cast<float>(value));
  if (type == "i32") copy(static_cast<std::int32_t>(value));
  if (type == "f16") copy(__float2half_rn(static_cast<float>(value)));
  if (type == "bf16") copy(__float2bfloat16_rn(static_cast<float>(value)));
  if (type == "u8") copy(static_cast<std::uint8_t>(value));
}

class Random {
 public:
  double normal() { return normal_(bits_); }
  double uniform() { return uniform_(bits_); }

  // The covariance of 2 D rows whose columns are correlated.
  void covariance(std::size_t D, double* a) {
    std::vector<double> mixing(D * D), x(2 * D * D, 0.0);
    for (double& m : mixing) m = normal() / std::sqrt(static_cast<double>(D));
    for (std::size_t r = 0; r < 2 * D; ++r) {
      for (std::size_t k = 0; k < D; ++k) {
        const double z = normal();
        for (std::size_t j = 0; j < D; ++j) x[r * D + j] += z * mixing[k * D + j];
      }
    }
    for (std::size_t r = 0; r < 2 * D; ++r) {
      for (std::size_t i = 0; i < D * D; ++i) {
        a[i] += x[r * D + i / D] * x[r * D + i % D] / static_cast<double>(2 * D);
      }
    }
  }
  // An orthogonal matrix, by Gram and Schmidt, twice.
  void orthogonal(std::size_t D, double* q) {
    for (std::size_t i = 0; i < D; ++i) {
      double* const row = q + i * D;
      for (std::size_t j = 0; j < D; ++j) row[j] = normal();
      for (std::size_t k = 0; k < 2 * i; ++k) {
        const double* const other = q + k % i * D;
        double dot = 0;
        for (std::size_t j = 0; j < D; ++j) dot += row[j] * other[j];
        for (std::size_t j = 0; j < D; ++j) row[j] -= dot * other[j];
      }
      double square = 0;
      for (std::size_t j = 0; j < D; ++j) square += row[j] * row[j];
      for (std::size_t j = 0; j < D; ++j) row[j] /= std::sqrt(square);
    }
  }

 private:
  std::mt19937_64 bits_{1};
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_{0.5, 1.5};
};

std::vector<double> values(const std::string& kind, std::size_t count) {
  std::vector<double> v(count, kind == "one" ? 1.0 : 0.0);
  Random random;
  if (kind == "normal" || kind == "uniform") {
    for (double& x : v) x = kind == "normal" ? random.normal() : random.uniform();
  } else if (const auto open = kind.find('('); open != std::string::npos) {
    const std::size_t D = std::stoul(kind.substr(open + 1));
    const std::string what = kind.substr(0, open);
    if (what != "spd" && what != "ortho") throw std::runtime_error("unknown: " + kind);
    for (std::size_t first = 0; first + D * D <= count; first += D * D) {
      what == "spd" ? random.covariance(D, &v[first]) : random.orthogonal(D, &v[first]);
    }
  } else if (kind != "zero" && kind != "one") {
    throw std::runtime_error("unknown: " + kind);
  }
  return v;
}

// The parameters of a kernel as bytes, and the arrays that they point to.
class Parameters {
 public:
  void add(const std::string& text) {
    const auto colon = text.find(':'), open = text.find('[');
    if (text == "null") return pointer(nullptr);
    if (open != std::string::npos) return array(text, open);
    const std::string type = text.substr(0, colon), value = text.substr(colon + 1);
    if (type == "pad") {
      bytes_.resize(bytes_.size() + std::stoul(value));
      return;
    }
    put(next(size_of(type)), type, std::stod(value));
  }
  const Bytes& bytes() const { return bytes_; }
  void write_named() const {
    for (const Array& a : arrays_) {
      if (a.name.empty()) continue;
      std::ofstream file(a.name, std::ios::binary);
      file.write(reinterpret_cast<const char*>(a.memory), static_cast<std::streamsize>(a.bytes));
    }
  }

 private:
  struct Array {
    std::string name;
    std::size_t bytes;
    std::uint8_t* memory;
  };
  std::uint8_t* next(std::size_t size) {
    const std::size_t at = (bytes_.size() + size - 1) / size * size;
    bytes_.resize(at + size);
    return bytes_.data() + at;
  }
  void pointer(const void* p) { std::memcpy(next(8), &p, 8); }
  void array(const std::string& text, std::size_t open) {
    const auto equals = text.find('='), close = text.find("]:");
    const std::size_t first = equals == std::string::npos ? 0 : equals + 1;
    const std::string type = text.substr(first, open - first);
    const std::size_t count = std::stoul(text.substr(open + 1)), bytes = count * size_of(type);
    auto* const memory = static_cast<std::uint8_t*>(machine::allocate(bytes, false));
    const auto v = values(close == std::string::npos ? "zero" : text.substr(close + 2), count);
    for (std::size_t i = 0; i < count; ++i) put(memory + i * size_of(type), type, v[i]);
    pointer(memory);
    arrays_.push_back({first == 0 ? "" : text.substr(0, equals), bytes, memory});
  }

  Bytes bytes_;
  std::vector<Array> arrays_;
};

void triple(const std::string& text, std::uint32_t (&out)[3]) {
  std::istringstream in(text);
  std::string part;
  for (int i = 0; i < 3 && std::getline(in, part, ','); ++i) {
    out[i] = static_cast<std::uint32_t>(std::stoul(part));
  }
}

void run(int argc, char** argv) {
  if (argc < 5) throw std::runtime_error("usage: kernel NAME GRID BLOCK SHARED ARGUMENT...");
  std::uint32_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1};
  triple(argv[2], grid);
  triple(argv[3], block);
  Parameters parameters;
  for (int i = 5; i < argc; ++i) parameters.add(argv[i]);
  machine::launch(argv[1], grid, block, std::stoll(argv[4]), parameters.bytes());
  parameters.write_named();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 3;
  }
  return 0;
}
