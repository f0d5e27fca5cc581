// How a test hands arrays and numbers to a program that launches emulated kernels, and gets arrays
// back: files of named entries, "name type count\n" followed by the bytes.
//
//   int main(int argc, char** argv) {
//     return emulation::drive(argc, argv, [](emulation::Arguments& a) { ... });
//   }
//
// A third argument asks which barriers and warp operations the kernels reach: the program prints
// their places, one a line. "--omit=jacobi.cuh:139" leaves one of them out, "--omit=" none.
//
// Every array lies in a block of exactly its size on the heap: AddressSanitizer sees what runs
// over. Errors go to stderr, with exit code 3. On Linux the program ends with who started it.
#pragma once

#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>

#include "emulation.h"

namespace emulation {

class Arguments {
 public:
  explicit Arguments(const char* path) {
    std::ifstream file(path, std::ios::binary);
    std::string name, type;
    std::size_t count = 0;
    while (file >> name >> type >> count) {
      file.get();  // the end of the line
      Entry& entry = entries_[name];
      entry.type = type;
      entry.count = count;
      entry.bytes = count * size_of(type);
      entry.memory.reset(allocate(entry.bytes, name, true));
      file.read(entry.memory.get(), static_cast<std::streamsize>(entry.bytes));
      if (!file) throw Error("arguments: " + name + " is cut short");
    }
  }

  bool has(const std::string& name) const { return entries_.count(name) != 0; }

  // An array to read and write in place (it comes back to the test); nullptr if it was not given.
  template <class T>
  T* array(const std::string& name) {
    const auto found = entries_.find(name);
    if (found == entries_.end()) return nullptr;
    if (size_of(found->second.type) != sizeof(T)) throw Error("arguments: bad type of " + name);
    return reinterpret_cast<T*>(found->second.memory.get());
  }
  std::size_t count(const std::string& name) const { return at(name).count; }
  std::string type(const std::string& name) const { return at(name).type; }

  int64_t integer(const std::string& name) { return *required<int64_t>(name); }
  int64_t integer(const std::string& name, int64_t otherwise) {
    return has(name) ? integer(name) : otherwise;
  }
  double real(const std::string& name) { return *required<double>(name); }

  // A new array of garbage (every byte 255) that comes back to the test.
  template <class T>
  T* output(const std::string& name, std::size_t count) {
    Entry& entry = entries_[name];
    entry.type = type_of<T>();
    entry.count = count;
    entry.bytes = count * sizeof(T);
    entry.memory.reset(allocate(entry.bytes, name, false));
    std::memset(entry.memory.get(), 255, entry.bytes);
    return reinterpret_cast<T*>(entry.memory.get());
  }

  // The order of threads that the test asks for: "order" (0, 1, 2) and "seed".
  Order order() {
    return {static_cast<Order::Kind>(integer("order", 0)),
            static_cast<std::uint64_t>(integer("seed", 1))};
  }

  void save(const char* path) const {
    std::ofstream file(path, std::ios::binary);
    for (const auto& [name, entry] : entries_) {
      file << name << ' ' << entry.type << ' ' << entry.count << '\n';
      file.write(entry.memory.get(), static_cast<std::streamsize>(entry.bytes));
    }
    if (!file) throw Error("arguments: cannot write the results");
  }

 private:
  static char* allocate(std::size_t bytes, const std::string& name, bool written) {
    return static_cast<char*>(GlobalMemory::instance().allocate(bytes, name, written));
  }

  struct Entry {
    std::string type;
    std::size_t count = 0, bytes = 0;
    std::unique_ptr<char, FreeGlobal> memory;
  };

  static std::size_t size_of(const std::string& type) {
    if (type == "f64" || type == "i64") return 8;
    if (type == "f32" || type == "i32") return 4;
    if (type == "f16" || type == "bf16") return 2;
    throw Error("arguments: unknown type " + type);
  }
  template <class T>
  static const char* type_of() {
    if (std::is_same_v<T, double>) return "f64";
    if (std::is_same_v<T, float>) return "f32";
    if (std::is_same_v<T, int64_t>) return "i64";
    if (std::is_same_v<T, int32_t>) return "i32";
    if (std::is_same_v<T, __half>) return "f16";
    static_assert(std::is_same_v<T, double> || std::is_same_v<T, float> ||
                  std::is_same_v<T, int64_t> || std::is_same_v<T, int32_t> ||
                  std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
    return "bf16";
  }
  const Entry& at(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) throw Error("arguments: " + name + " is missing");
    return found->second;
  }
  template <class T>
  T* required(const std::string& name) {
    if (at(name).count != 1) throw Error("arguments: " + name + " is no number");
    return array<T>(name);
  }

  std::map<std::string, Entry> entries_;
};

template <class F>
int drive(int argc, char** argv, const F& body) {
#if defined(__linux__)
  prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  const std::string omit = argc == 4 ? argv[3] : "--omit=";
  const bool known = omit.rfind("--omit=", 0) == 0;
  if (argc < 3 || argc > 4 || !known ||
      (argc == 4 && !Omission::instance().begin(omit.substr(std::strlen("--omit="))))) {
    std::cerr << "usage: " << argv[0] << " arguments results [--omit=[file:line]]\n";
    return 2;
  }
  try {
    Arguments arguments(argv[1]);
    body(arguments);
    arguments.save(argv[2]);
    for (const auto& place : Omission::instance().reached()) std::cout << place << '\n';
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return 3;
  }
  return 0;
}

}  // namespace emulation
