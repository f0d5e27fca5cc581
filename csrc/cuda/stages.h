// The stages as functions of pointers: what an op calls, and whiten.cuh one after another.
//
// Device says where: it has allocate<T>(count), whose result frees itself, and launch(kernel,
// blocks, threads, shared bytes, arguments...). csrc/cuda/device.h is a CUDA stream; tests have the
// emulator. The definitions are in <stage>.cuh, for a CUDA stream instantiated in <stage>.cu.
// Pointers p, running, blended, rho, gamma and beta may be null. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "../common/passes.h"

namespace fastwhiten {
namespace cuda {

template <class Device, class In, class T>
void run_statistics(Device& device, const Statistics<In, T>& args);

template <class Device, class In, class T>
void run_intensity(Device& device, const Intensity<In, T>& args);

// Blends, and symmetrises; run_factor_blended takes a covariance that is both.
template <class Device, class T>
void run_factor(Device& device, const Factor<T>& args);
template <class Device, class T>
void run_factor_blended(Device& device, const Factor<T>& args);

template <class Device, class In, class T>
void run_apply(Device& device, const Apply<In, T>& args);

template <class Device, class In, class T>
void run_backward_reduce(Device& device, const BackwardReduce<In, T>& args);

template <class Device, class T>
void run_backward_matrix(Device& device, const BackwardMatrix<T>& args);

template <class Device, class In, class T>
void run_backward_apply(Device& device, const BackwardApply<In, T>& args);

template <class Device, class In, class T>
void run_whiten_forward(Device& device, const WhitenForward<In, T>& in);

template <class Device, class In, class T>
void run_whiten_backward(Device& device, const WhitenBackward<In, T>& in);

template <class Device, class In, class T>
void run_sample_statistics(Device& device, const SampleStatistics<In, T>& args);

template <class Device, class Out, class T>
void run_sample_apply(Device& device, const SampleApply<Out, T>& args);

template <class Device, class In, class T>
void run_sample_backward(Device& device, const SampleBackward<In, T>& args);

}  // namespace cuda
}  // namespace fastwhiten
