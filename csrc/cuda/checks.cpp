// The checks of csrc/ops once more: this module cannot see those of fastwhiten_cpu, which registers
// the schemas.
#define FASTWHITEN_CHECKS_ONLY
#include "../ops/apply.cpp"
#include "../ops/backward_apply.cpp"
#include "../ops/backward_matrix.cpp"
#include "../ops/backward_reduce.cpp"
#include "../ops/eigh.cpp"
#include "../ops/factor.cpp"
#include "../ops/intensity.cpp"
#include "../ops/sample.cpp"
#include "../ops/statistics.cpp"
#include "../ops/whiten.cpp"
