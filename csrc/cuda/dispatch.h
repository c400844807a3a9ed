// From run-time facts to a kernel instance, and from an instance to the number of blocks that the device holds.
#pragma once

#include "cuda/coefficients.cuh"
#include "cuda/plan.h"

namespace road::cuda {

inline int multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return count;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// How many blocks of `kernel` the device holds at once, which depends on the registers that the compiler used.  Callers
// ask once: where a machine has different devices, the answer for the first serves all, at the cost of speed only.
template <class Kernel>
int resident_blocks(Kernel* kernel) {
  int blocks = 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0) != cudaSuccess || blocks < 1) {
    blocks = 1;
    cudaGetLastError();  // clear the error: otherwise the launch that follows would report it
  }
  return blocks * multiprocessors();
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
