// From run-time facts to a kernel instance.
#pragma once

#include "columns.cuh"
#include "plan.h"

namespace road::cuda {

inline int multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return count;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// How many blocks of `kernel` the device holds at once.  The registers that the compiler took decide it.  Callers ask
// once: of several different devices in a machine the first answers for all, at the cost of speed only.
template <class Kernel>
int resident_blocks(Kernel* kernel) {
  int blocks = 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0) != cudaSuccess || blocks < 1) {
    blocks = 1;
    cudaGetLastError();  // taken off, or the launch that follows would be reported as failed
  }
  return blocks * multiprocessors();
}

template <class Use>
void with_dtype(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat16: return use(Half{});
    case DType::kBFloat16: return use(BFloat16{});
    case DType::kFloat32: return use(float{});
    default: return use(double{});
  }
}

template <class P, bool Shared>
struct Choice {
  using Pairing = P;
  static constexpr bool kShared = Shared;
};

// use(Choice<pairing and vector width, shared>): 16 bytes a load where `wide`, one element at a time elsewhere.
template <class T, class Use>
void with_choice(bool wide, bool adjacent, bool shared, const Use& use) {
  constexpr int N = 16 / sizeof(T);
  const auto pairing = [&](auto wide_, auto narrow_) {
    if (wide) shared ? use(Choice<decltype(wide_), true>{}) : use(Choice<decltype(wide_), false>{});
    else shared ? use(Choice<decltype(narrow_), true>{}) : use(Choice<decltype(narrow_), false>{});
  };
  if (adjacent) pairing(Adjacent<T, N, true>{}, Adjacent<T, 2, false>{});
  else pairing(Halves<T, N, true>{}, Halves<T, 1, false>{});
}

}  // namespace road::cuda
