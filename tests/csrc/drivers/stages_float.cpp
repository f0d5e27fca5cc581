// stages.cpp in float32 only: what compiles fast enough to be compiled for every mutation.
#define STAGES_FLOAT_ONLY
#include "stages.cpp"
