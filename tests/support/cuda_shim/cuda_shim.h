// Runs CUDA kernels on the host, to test them without a GPU: blocks one after the other, a block's threads as fibers
// that switch at barriers.  It is an error if a thread returns while others wait at a barrier.  With
// ROAD_SHIM_REVERSE=1 the threads of a block run in reverse order, which exposes missing barriers that the usual order
// hides.  It cannot show other races, memory ordering, or anything about speed.
//
// Every .cu file is a translation unit of its own.  They share one scheduler and one set of thread and block indices:
// inline variables, and a static in an inline function.  __shared__ is a static of its kernel's instance.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

#define __global__
#define __device__
#define __host__
#define __noinline__
#define __constant__ static
#define __shared__ static
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// Few, so that small tests have more rows than there are blocks.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 1, cudaSuccess; }

namespace shim {

struct DeviceAssert : std::out_of_range {
  using std::out_of_range::out_of_range;
};

extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.weak shim_switch
.hidden shim_switch
.type shim_switch, @function
shim_switch:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* pointer = nullptr;
  bool done = false;
  dim3 index;
  static constexpr size_t kStack = 64 << 10;
};

struct Device {
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  const void* context = nullptr;
  void (*body)(const void*) = nullptr;
  std::exception_ptr error;

  const bool reversed = std::getenv("ROAD_SHIM_REVERSE") != nullptr;
  int launches = 0;                   // of this process
  int votes = 0;                      // what __syncthreads_count has seen
  bool waited = false;                // whether a thread of this kernel has called wait_for_inputs
  std::function<void()> before_wait;  // what the kernels before this one have not done yet

  static Device& get() {
    static Device device;
    return device;
  }

  static void enter() {
    Device& d = get();
    try {
      d.body(d.context);
    } catch (...) { d.error = std::current_exception(); }
    d.current->done = true;
    shim_switch(&d.current->pointer, d.scheduler);
    std::abort();  // a finished fiber is never resumed
  }

  void start(Fiber& f) {
    f.done = false;
    ASAN_UNPOISON_MEMORY_REGION(f.stack.get(), Fiber::kStack);  // the last thread never returned from its frames
    auto top = reinterpret_cast<uintptr_t>(f.stack.get() + Fiber::kStack) & ~uintptr_t{15};
    auto** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // aligns the stack as the ABI requires at a function's entry
    *--sp = reinterpret_cast<void*>(&enter);
    for (int k = 0; k < 6; ++k) *--sp = nullptr;
    f.pointer = sp;
  }

  void resume(Fiber& f) {
    current = &f;
    threadIdx = f.index;
    shim_switch(&scheduler, f.pointer);
  }

  void run_block() {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
      fibers[t].index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
      start(fibers[t]);
    }
    for (;;) {
      unsigned done = 0;
      for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[reversed ? threads - 1 - t : t];
        resume(fiber);
        done += fiber.done;
        if (error) std::rethrow_exception(std::exchange(error, nullptr));
      }
      if (done == threads) return;
      if (done) throw std::logic_error("barrier divergence: some threads of a block left, others wait");
    }
  }
};

inline void barrier() {
  Device& d = Device::get();
  shim_switch(&d.current->pointer, d.scheduler);
}

// A kernel that is launched dependently may start before its inputs are there.  Until all threads of its first block
// wait for them, they are not: a test writes them in `before_wait`, so that a kernel that reads them earlier computes
// something else.
inline void wait_for_inputs() {
  Device& d = Device::get();
  d.waited = true;
  if (!d.before_wait) return;
  barrier();
  if (d.before_wait) std::exchange(d.before_wait, nullptr)();
}

template <class F>
void launch(dim3 grid, dim3 block, const F& f) {
  if (grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > 65535 || block.x * block.y * block.z > 1024)
    throw std::logic_error("invalid launch configuration");
  Device& d = Device::get();
  ++d.launches;
  d.context = &f;
  d.body = [](const void* context) { (*static_cast<const F*>(context))(); };
  gridDim = grid;
  blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      d.waited = false;
      d.run_block();
      if (!d.waited) throw std::logic_error("a block ended without waiting for the kernels before it");
    }
}

}  // namespace shim

inline void __syncthreads() { shim::barrier(); }
inline int __syncthreads_count(bool mine) {
  shim::Device& d = shim::Device::get();
  d.votes += mine;
  __syncthreads();
  const int result = d.votes;
  __syncthreads();
  d.votes = 0;
  __syncthreads();  // no thread goes on before the votes are cleared
  return result;
}
// All threads of a block call it, not only those of a warp.
template <class V>
V __shfl_xor_sync(unsigned, V value, int lane) {
  const unsigned mine = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x, other = mine ^ lane;
  static V values[1024];
  if (other / 32 != mine / 32) throw std::logic_error("a shuffle beyond the warp");
  values[mine] = value;
  __syncthreads();
  const V result = other < blockDim.x * blockDim.y * blockDim.z ? values[other] : value;
  __syncthreads();
  return result;
}
inline bool __syncthreads_or(bool mine) { return __syncthreads_count(mine) > 0; }
inline int atomicAdd(int* address, int value) { return std::exchange(*address, *address + value); }

#undef assert
#define assert(condition) ((condition) ? void() : throw shim::DeviceAssert("device-side assertion: " #condition))
