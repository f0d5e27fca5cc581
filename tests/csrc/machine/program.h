// Instructions as tools/sass.py writes them, with what their names say made numbers.
#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace machine {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum Flag : uint32_t {
  kNegative = 1,
  kAbsolute = 2,
  kInverted = 4,
  kNot = 8,
  kWide = 16,
  kUpper = 32,
  kLower = 64
};

constexpr int kZeroRegister = 255, kZeroUniform = 63, kTrue = 7;

struct Operand {
  char kind = 'x';  // register, uniform, predicate p or q, immediate, const, memory, special, label
  int index = 0;
  uint32_t flags = 0;
  int64_t value = 0;
  int extra = 0;
  bool is_predicate() const { return kind == 'p' || kind == 'q'; }
};

// What time and control flow tell apart; from kBra on, what changes the course of a warp.
enum Code : int {
  kPlain,
  kCompares,
  kShfl,
  kLds,
  kSts,
  kLdg,
  kStg,
  kLdgsts,
  kLdgdepbar,
  kLdc,
  kMembar,
  kDepbar,
  kBar,
  kBra,
  kBssy,
  kBsync,
  kBreak,
  kBmov,
  kWarpsync,
  kCall,
  kRet,
  kExit
};

// Which unit works on it.
enum class Pipe { kFma, kImad, kAlu, kFp64, kSpecial, kUniform, kMemory, kControl };

enum class Compare { kF, kLt, kEq, kLe, kGt, kNe, kGe, kNum, kNan, kT, kMin, kMax };

struct Context;
struct Instruction {
  uint32_t address = 0;
  int guard = kTrue;
  std::string name;  // whole
  std::string base;  // without modifiers
  Code code = kPlain;
  void (*run)(Context&, const Instruction&, std::uint32_t lanes) = nullptr;
  Pipe pipe = Pipe::kAlu;
  int stall = 1, write = 7, read = 7, wait = 0;
  std::vector<Operand> operands;
  std::string line;
  // From the modifiers
  int bytes = 4;
  bool is_signed = true, extended = false, high = false, wide = false, wraps = false;
  bool flush = false, unordered = false, narrow = false;
  char rounding = 'N', logic = '&';
  Compare compare = Compare::kF;
  std::vector<std::string> modifiers;
  bool has(const char* modifier) const {
    for (const auto& m : modifiers) {
      if (m == modifier) return true;
    }
    return false;
  }
};

struct Kernel {
  std::string name;
  int registers = 0;
  int64_t shared = 0;  // static
  std::vector<Instruction> code;
  int at(uint64_t address) const {
    if (address % 16 != 0 || address / 16 >= code.size()) throw Error(name + ": jump out of it");
    return static_cast<int>(address / 16);
  }
};

inline Compare comparison(std::string name, bool& unordered) {
  static const std::map<std::string, Compare> known = {
      {"F", Compare::kF},     {"LT", Compare::kLt}, {"EQ", Compare::kEq},   {"LE", Compare::kLe},
      {"GT", Compare::kGt},   {"NE", Compare::kNe}, {"GE", Compare::kGe},   {"NUM", Compare::kNum},
      {"NAN", Compare::kNan}, {"T", Compare::kT},   {"MIN", Compare::kMin}, {"MAX", Compare::kMax}};
  unordered = name.size() == 3 && name[2] == 'U' && name != "NUM";
  if (unordered) name.pop_back();
  const auto found = known.find(name);
  if (found == known.end()) throw Error("expected a comparison, got " + name);
  return found->second;
}

inline void read_modifiers(Instruction& in) {
  std::istringstream parts(in.name);
  std::getline(parts, in.base, '.');
  for (std::string part; std::getline(parts, part, '.');) in.modifiers.push_back(part);
  for (const auto& m : in.modifiers) {
    if (m == "U32" || m == "U64" || m == "U8" || m == "U16") in.is_signed = false;
    if (m == "64" || m == "U64" || m == "S64" || m == "F64") in.bytes = 8;
    if (m == "128") in.bytes = 16;
    if (m == "U8" || m == "S8") in.bytes = 1;
    if (m == "U16" || m == "S16") in.bytes = 2;
    if (m == "X") in.extended = true;
    if (m == "HI") in.high = true;
    if (m == "WIDE") in.wide = true;
    if (m == "SX32") in.narrow = true;
    if (m == "W") in.wraps = true;
    if (m == "FTZ") in.flush = true;
    if (m == "RM" || m == "FLOOR") in.rounding = 'M';
    if (m == "RP" || m == "CEIL") in.rounding = 'P';
    if (m == "RZ" || m == "TRUNC") in.rounding = 'Z';
    if (m == "OR") in.logic = '|';
    if (m == "XOR") in.logic = '^';
    if (m == "EX") in.extended = true;
  }
}

// Reads all kernels; resolve(instruction) gives each its code and its pipe.
template <class Resolve>
std::map<std::string, Kernel> load_program(const std::string& path, const Resolve& resolve) {
  std::ifstream file(path);
  if (!file) throw Error("cannot read " + path);
  std::map<std::string, Kernel> kernels;
  std::string word;
  while (file >> word) {
    Kernel kernel;
    std::size_t count = 0;
    file >> kernel.name >> kernel.registers >> kernel.shared >> count;
    for (std::size_t i = 0; i < count; ++i) {
      Instruction in;
      std::size_t operands = 0;
      file >> in.address >> in.guard >> in.name >> in.stall >> in.write >> in.read >> in.wait >>
          in.line >> operands;
      for (std::size_t k = 0; k < operands; ++k) {
        Operand o;
        file >> o.kind >> o.index >> o.flags >> o.value >> o.extra;
        in.operands.push_back(o);
      }
      if (!file || in.address != 16 * i) throw Error(path + ": cut short in " + kernel.name);
      read_modifiers(in);
      resolve(in);
      kernel.code.push_back(in);
    }
    kernels[kernel.name] = kernel;
  }
  return kernels;
}

}  // namespace machine
