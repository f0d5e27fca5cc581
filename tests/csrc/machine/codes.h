// The instructions that the machine knows: what each does, and the unit that works on it.
#pragma once

#include "real.h"
#include "transfers.h"

namespace machine {

inline void nothing(Context&, const Instruction&, uint32_t) {}

struct Known {
  Pipe pipe;
  void (*run)(Context&, const Instruction&, uint32_t);
  Code code = kPlain;
};

// By names without modifiers. Those of the uniform data path have a U before them.
inline const std::map<std::string, Known> kKnown = {
    {"NOP", {Pipe::kControl, nothing}},
    {"YIELD", {Pipe::kControl, nothing}},
    {"MOV", {Pipe::kAlu, move}},
    {"SEL", {Pipe::kAlu, select}},
    {"IADD3", {Pipe::kAlu, add}},
    {"VIADD", {Pipe::kAlu, add_two}},
    {"IMAD", {Pipe::kImad, multiply_add}},
    {"LEA", {Pipe::kAlu, shifted_add}},
    {"SHF", {Pipe::kAlu, shift}},
    {"LOP3", {Pipe::kAlu, logic3}},
    {"PLOP3", {Pipe::kAlu, predicate_logic3}},
    {"ISETP", {Pipe::kAlu, compare_integers, kCompares}},
    {"IABS", {Pipe::kAlu, absolute}},
    {"VIMNMX", {Pipe::kAlu, minimum}},
    {"IMNMX", {Pipe::kAlu, minimum}},
    {"VIADDMNMX", {Pipe::kAlu, minimum}},
    {"VIMNMX3", {Pipe::kAlu, minimum_of_three}},
    {"PRMT", {Pipe::kAlu, permute}},
    {"P2R", {Pipe::kAlu, predicates_to_register}},
    {"R2P", {Pipe::kAlu, register_to_predicates}},
    {"R2UR", {Pipe::kAlu, register_to_uniform}},
    {"CS2R", {Pipe::kAlu, zero}},
    {"POPC", {Pipe::kSpecial, count_ones}},
    {"FLO", {Pipe::kSpecial, find_leading}},
    {"BREV", {Pipe::kSpecial, reverse}},
    {"SGXT", {Pipe::kAlu, extend_sign}},
    {"BMSK", {Pipe::kAlu, bit_mask}},
    {"VOTE", {Pipe::kAlu, vote}},
    {"REDUX", {Pipe::kSpecial, reduce}},
    {"FADD", {Pipe::kFma, add_float}},
    {"FMUL", {Pipe::kFma, multiply_float}},
    {"FFMA", {Pipe::kFma, fuse_float}},
    {"FSETP", {Pipe::kAlu, compare_floats, kCompares}},
    {"FSET", {Pipe::kAlu, compare_to_register, kCompares}},
    {"FMNMX", {Pipe::kAlu, minimum_float}},
    {"FSEL", {Pipe::kAlu, select_float}},
    {"FCHK", {Pipe::kSpecial, check_division}},
    {"MUFU", {Pipe::kSpecial, special_function}},
    {"I2F", {Pipe::kSpecial, from_integer}},
    {"I2FP", {Pipe::kAlu, from_integer}},
    {"F2I", {Pipe::kSpecial, to_integers}},
    {"F2F", {Pipe::kSpecial, to_real}},
    {"FRND", {Pipe::kSpecial, to_real}},
    {"F2FP", {Pipe::kAlu, pack_halves}},
    {"HADD2", {Pipe::kImad, halves}},
    {"HMUL2", {Pipe::kImad, halves}},
    {"HFMA2", {Pipe::kImad, halves}},
    {"DADD", {Pipe::kFp64, add_double}},
    {"DMUL", {Pipe::kFp64, multiply_double}},
    {"DFMA", {Pipe::kFp64, fuse_double}},
    {"DSETP", {Pipe::kFp64, compare_doubles, kCompares}},
    {"S2R", {Pipe::kMemory, system_register}},
    {"S2UR", {Pipe::kMemory, system_register}},
    {"B2R", {Pipe::kMemory, barrier_result}},
    {"LDC", {Pipe::kMemory, load_constant, kLdc}},
    {"SHFL", {Pipe::kMemory, shuffle, kShfl}},
    {"LDS", {Pipe::kMemory, load, kLds}},
    {"STS", {Pipe::kMemory, store, kSts}},
    {"LDG", {Pipe::kMemory, load, kLdg}},
    {"STG", {Pipe::kMemory, store, kStg}},
    {"LDGSTS", {Pipe::kMemory, copy, kLdgsts}},
    {"LDGDEPBAR", {Pipe::kMemory, nothing, kLdgdepbar}},
    {"MEMBAR", {Pipe::kMemory, nothing, kMembar}},
    {"DEPBAR", {Pipe::kControl, nothing, kDepbar}},
    {"ENDCOLLECTIVE", {Pipe::kControl, nothing}},  // after WARPSYNC.COLLECTIVE has gathered
    {"BAR", {Pipe::kControl, nothing, kBar}},
    {"BRA", {Pipe::kControl, nothing, kBra}},
    {"BSSY", {Pipe::kControl, nothing, kBssy}},
    {"BSYNC", {Pipe::kControl, nothing, kBsync}},
    {"BREAK", {Pipe::kControl, nothing, kBreak}},
    {"BMOV", {Pipe::kControl, nothing, kBmov}},
    {"WARPSYNC", {Pipe::kControl, nothing, kWarpsync}},
    {"CALL", {Pipe::kControl, nothing, kCall}},
    {"RET", {Pipe::kControl, nothing, kRet}},
    {"EXIT", {Pipe::kControl, nothing, kExit}},
};

inline void unknown(Context&, const Instruction& in, uint32_t) {
  throw Error(in.name + " (" + in.line + ") is not known to the machine (codes.h)");
}

// Finds an instruction by its name. One that is not known is an error only if it is executed.
inline void resolve(Instruction& in) {
  auto found = kKnown.find(in.base);
  const bool uniform = found == kKnown.end() && in.base[0] == 'U';
  if (uniform) found = kKnown.find(in.base.substr(1));
  in.run = unknown;
  if (found == kKnown.end()) return;
  in.run = found->second.run;
  in.code = found->second.code;
  in.pipe = uniform ? Pipe::kUniform : found->second.pipe;
  if (in.code == kCompares) {
    in.compare = comparison(in.modifiers.at(in.base == "FSET" ? 1 : 0), in.unordered);
  }
}

}  // namespace machine
