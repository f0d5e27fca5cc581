// The stages as functions of pointers: what an op calls for all groups, and whiten.cpp for each.
// Shapes as in the stage's own file; p, running, rho, gamma, beta and start may be null. ops.h
// finds them by their Device, which has nothing else to say to them.
#pragma once

#include <cstdint>

#include "../common/passes.h"
#include "device.h"

namespace fastwhiten::cpu {

template <class In, class T>
void run_statistics(const Device&, const Statistics<In, T>& args);

template <class In, class T>
void run_intensity(const Device&, const Intensity<In, T>& args);

template <class T>
void run_factor(const Device&, const Factor<T>& args);

template <class In, class T>
void run_apply(const Device&, const Apply<In, T>& args);

template <class In, class T>
void run_backward_reduce(const Device&, const BackwardReduce<In, T>& args);

template <class T>
void run_backward_matrix(const Device&, const BackwardMatrix<T>& args);

template <class In, class T>
void run_backward_apply(const Device&, const BackwardApply<In, T>& args);

template <class In, class T>
void run_whiten_forward(const Device&, const WhitenForward<In, T>& in);

template <class In, class T>
void run_whiten_backward(const Device&, const WhitenBackward<In, T>& in);

template <class In, class T>
void run_sample_statistics(const Device&, const SampleStatistics<In, T>& args);

template <class Out, class T>
void run_sample_apply(const Device&, const SampleApply<Out, T>& args);

template <class In, class T>
void run_sample_backward(const Device&, const SampleBackward<In, T>& args);

}  // namespace fastwhiten::cpu
