// Runs one compiled kernel on the machine (machine/), on arrays that its arguments describe, and
// prints how long that takes: tools/kernel_model.py.
//
//   kernel PROGRAM NAME GX,GY,GZ BX,BY,BZ SHARED ARGUMENT...
//
// Arguments in the order of the kernel's parameters, fields of structs one after another:
//   i32:5 i64:5 u8:1 f32:0.5 f64:0.5          numbers
//   null                                      a null pointer
//   NAME=f32[4096]:normal                     a pointer to an array: zero, one, normal, spd(D),
//                                             ortho(D); a name is for the results
//   pad:4                                     bytes
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>

#include "machine/report.h"

namespace {

using namespace machine;

struct Array {
  std::string name, type;
  std::size_t count = 0;
  std::vector<uint8_t> bytes;
};

std::size_t size_of(const std::string& type) {
  if (type == "f64" || type == "i64") return 8;
  if (type == "f32" || type == "i32") return 4;
  if (type == "f16" || type == "bf16") return 2;
  if (type == "u8") return 1;
  throw Error("expected a type such as f32, got " + type);
}

void put(std::vector<uint8_t>& to, std::size_t at, const std::string& type, double value) {
  const auto copy = [&](auto x) { std::memcpy(to.data() + at, &x, sizeof(x)); };
  if (type == "f64") copy(value);
  if (type == "i64") copy(static_cast<int64_t>(value));
  if (type == "f32") copy(static_cast<float>(value));
  if (type == "i32") copy(static_cast<int32_t>(value));
  if (type == "f16") copy(static_cast<uint16_t>(float_to_half(static_cast<float>(value))));
  if (type == "bf16") copy(static_cast<uint16_t>(float_to_bfloat16(static_cast<float>(value))));
  if (type == "u8") copy(static_cast<uint8_t>(value));
}

std::vector<double> values(const std::string& kind, std::size_t count) {
  std::vector<double> v(count, 0.0);
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  const auto open = kind.find('(');
  const std::string what = kind.substr(0, open);
  const std::size_t D = open == std::string::npos ? 0 : std::stoul(kind.substr(open + 1));
  if (what == "one") v.assign(count, 1.0);
  if (what == "normal") {
    for (double& x : v) x = normal(random);
  }
  if (what == "uniform") {
    for (double& x : v) x = std::uniform_real_distribution<double>(0.5, 1.5)(random);
  }
  if (what == "spd" || what == "ortho") {  // of 2 D correlated rows, one after another
    for (std::size_t b = 0; b + D * D <= count; b += D * D) {
      const std::size_t rows = what == "spd" ? 2 * D : D;
      std::vector<double> mixing(D * D), x(rows * D);
      for (double& m : mixing) m = normal(random) / std::sqrt(static_cast<double>(D));
      for (std::size_t r = 0; r < rows; ++r) {
        std::vector<double> z(D);
        for (double& e : z) e = normal(random);
        for (std::size_t j = 0; j < D; ++j) {
          double sum = 0;
          for (std::size_t k = 0; k < D; ++k) sum += z[k] * mixing[k * D + j];
          x[r * D + j] = what == "spd" ? sum : z[j];
        }
      }
      if (what == "spd") {
        for (std::size_t i = 0; i < D; ++i) {
          for (std::size_t j = 0; j < D; ++j) {
            double sum = 0;
            for (std::size_t r = 0; r < rows; ++r) sum += x[r * D + i] * x[r * D + j];
            v[b + i * D + j] = sum / static_cast<double>(rows);
          }
        }
      } else {
        for (std::size_t i = 0; i < D; ++i) {  // Gram-Schmidt, twice
          for (int pass = 0; pass < 2; ++pass) {
            for (std::size_t k = 0; k < i; ++k) {
              double dot = 0;
              for (std::size_t j = 0; j < D; ++j) dot += x[i * D + j] * v[b + k * D + j];
              for (std::size_t j = 0; j < D; ++j) x[i * D + j] -= dot * v[b + k * D + j];
            }
          }
          double norm = 0;
          for (std::size_t j = 0; j < D; ++j) norm += x[i * D + j] * x[i * D + j];
          for (std::size_t j = 0; j < D; ++j) v[b + i * D + j] = x[i * D + j] / std::sqrt(norm);
        }
      }
    }
  }
  return v;
}

std::array<uint32_t, 3> triple(const std::string& text) {
  std::array<uint32_t, 3> out{1, 1, 1};
  std::istringstream in(text);
  std::string part;
  for (std::size_t i = 0; i < 3 && std::getline(in, part, ','); ++i) {
    out[i] = static_cast<uint32_t>(std::stoul(part));
  }
  return out;
}

void add_argument(const std::string& text, Launch& launch, std::size_t& at,
                  std::vector<Array>& arrays) {
  auto& bytes = launch.constants.bytes;
  const auto align = [&](std::size_t size) { at = (at + size - 1) / size * size; };
  const auto pointer = [&](const void* p) {
    align(8);
    std::memcpy(bytes.data() + Constants::kParameters + at, &p, 8);
    at += 8;
  };
  if (text == "null") return pointer(nullptr);
  const auto colon = text.find(':'), open = text.find('[');
  if (open == std::string::npos) {
    const std::string type = text.substr(0, colon), value = text.substr(colon + 1);
    if (type == "pad") {
      at += std::stoul(value);
      return;
    }
    align(size_of(type));
    put(bytes, Constants::kParameters + at, type, std::stod(value));
    at += size_of(type);
    return;
  }
  Array a;
  const auto equals = text.find('=');
  const std::size_t first = equals == std::string::npos ? 0 : equals + 1;
  a.name = equals == std::string::npos ? "" : text.substr(0, equals);
  a.type = text.substr(first, open - first);
  a.count = std::stoul(text.substr(open + 1));
  a.bytes.resize(a.count * size_of(a.type));
  const auto close = text.find("]:");
  const auto v = values(close == std::string::npos ? "zero" : text.substr(close + 2), a.count);
  for (std::size_t i = 0; i < a.count; ++i) put(a.bytes, i * size_of(a.type), a.type, v[i]);
  arrays.push_back(std::move(a));
  pointer(arrays.back().bytes.data());
}

int run(int argc, char** argv) {
  if (argc < 6) throw Error("usage: kernel PROGRAM NAME GRID BLOCK SHARED ARGUMENT...");
  const auto program = load_program(argv[1], resolve);
  const auto found = program.find(argv[2]);
  if (found == program.end()) throw Error(std::string("no kernel ") + argv[2]);
  Launch launch;
  launch.kernel = &found->second;
  launch.grid = triple(argv[3]);
  launch.block = triple(argv[4]);
  launch.shared = std::stoll(argv[5]);
  set_sizes(launch);
  std::vector<Array> arrays;
  arrays.reserve(static_cast<std::size_t>(argc));
  std::size_t at = 0;
  for (int i = 6; i < argc; ++i) add_argument(argv[i], launch, at, arrays);
  Arrays known;
  for (const Array& a : arrays) known.add(a.bytes.data(), a.bytes.size());
  L2 l2;
  Simulation simulation(known, l2);
  const Outcome out = simulation.run(launch, true);
  report(std::cout, launch);
  report(std::cout, launch, out);
  for (const Array& a : arrays) {
    if (a.name.empty()) continue;
    std::ofstream file(a.name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(a.bytes.data()),
               static_cast<std::streamsize>(a.bytes.size()));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 3;
  }
}
