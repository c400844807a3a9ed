// Launching kernels, dependently where the device can: such a kernel starts while the one before it still runs, and
// waits for its results where it first needs them (programmatic dependent launch, compute capability 9.0 and newer).
#pragma once

#include <atomic>

#include "cuda/vector.cuh"

namespace road::cuda {

// Returns when the kernels before this one have ended and what they wrote can be read; then lets the next kernel start,
// if it is launched dependently.  Every thread calls it: a kernel that did not could end before the one before it, and
// nothing would wait for that one.  In this order, a kernel that starts early knows that all kernels but the one before
// it have ended.
__device__ __forceinline__ void wait_for_inputs() {
#if defined(ROAD_CUDA_SHIM)
  shim::wait_for_inputs();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Lets the next kernel start before this one has waited: for `overlap`, whose caller knows what is still in flight in
// front of several such kernels.  One row of 4096 took 1.1 us so on an H100, and 1.3 otherwise.
__device__ __forceinline__ void let_next_start() {
#if !defined(ROAD_CUDA_SHIM) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Of a kernel whose blocks have up to 1024 threads: how many registers each of them may have.  64 where nvcc, before
// 12.4, takes no number.
#if defined(ROAD_CUDA_SHIM) || __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define ROAD_AT_MOST_REGISTERS(count) __maxnreg__(count)
#else
#define ROAD_AT_MOST_REGISTERS(count) __launch_bounds__(1024, 1)
#endif

inline int multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return count;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

#if defined(ROAD_CUDA_SHIM)

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, const Arguments&... arguments) {
  shim::launch(grid, block, [&] { kernel(arguments...); });
}

#else

// Whether the current device runs code of `kernel` that waits: compiled for 9.0 or newer (code for 8.0 that the driver
// translated for a newer device does not), by a driver that can capture such launches in a graph (CUDA 12.3).
// ROAD_NO_DEPENDENT_LAUNCH is for a profiler, whose times of kernels otherwise include the wait.
template <class Kernel>
bool waits_for_inputs(Kernel* kernel) {
#if CUDART_VERSION < 12030 || defined(ROAD_NO_DEPENDENT_LAUNCH)
  return false;
#else
  constexpr int kMostDevices = 64;
  static std::atomic<signed char> known[kMostDevices] = {};  // 0: not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return false;
  signed char answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    cudaFuncAttributes attributes;
    int driver = 0;
    const bool asked =
        cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && cudaDriverGetVersion(&driver) == cudaSuccess;
    if (!asked) cudaGetLastError();  // clear the error: otherwise the launch that follows would report it
    answer = asked && attributes.ptxVersion >= 90 && driver >= 12030 ? 1 : -1;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer > 0;
#endif
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.stream = stream;
  cudaLaunchAttribute dependent[1];
  dependent[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent[0].val.programmaticStreamSerializationAllowed = 1;
  if (waits_for_inputs(kernel)) config.attrs = dependent, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

#endif

}  // namespace road::cuda
