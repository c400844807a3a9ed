// The sums of gz h^T per pair (see core/rotate.h) in registers, and writing them.
#pragma once

#include "cuda/vector.cuh"

namespace road::cuda {

template <bool Shared>
constexpr int kMoments = Shared ? 2 : 4;  // sums per pair

// The sums of one pair, as an array of kMoments numbers.
template <class A, bool Shared>
struct MomentsOf : PairMoments<A> {
  static constexpr int kCount = 4;
  __device__ __forceinline__ A& at(int m) {
    return m == 0 ? this->ii : m == 1 ? this->ij : m == 2 ? this->ji : this->jj;
  }
};
template <class A>
struct MomentsOf<A, true> : SharedMoments<A> {
  static constexpr int kCount = 2;
  __device__ __forceinline__ A& at(int m) { return m == 0 ? this->dot : this->cross; }
};

// Adds the sums of the threads of a column (all threadIdx.y, a power of two of them), pairwise and in a fixed order;
// the first thread gets the totals.  `shared` has room for the sums of half of the threads.
template <class A, int K, class Moments>
__device__ __forceinline__ void add_columns(Moments (&sums)[K], A* shared) {
#pragma unroll 1
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    // Those of a level read what its other threads wrote; the next level writes where nobody reads any more.
    A* mine = shared + (threadIdx.y % half * K * Moments::kCount) * blockDim.x + threadIdx.x;
    if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
      for (int n = 0; n < K * Moments::kCount; ++n) mine[n * blockDim.x] = sums[n % K].at(n / K);
    }
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int n = 0; n < K * Moments::kCount; ++n) sums[n % K].at(n / K) += mine[n * blockDim.x];
    }
    __syncthreads();
  }
}

// Writes kCount arrays of `pairs` sums to `slot`, which is aligned to 16 bytes if Aligned.
template <bool Aligned, class A, int K, class Moments>
__device__ __forceinline__ void write_sums(Moments (&sums)[K], A* slot, int pairs) {
  constexpr int N = K * sizeof(A) <= 16 ? K : 16 / sizeof(A);
#pragma unroll
  for (int m = 0; m < Moments::kCount; ++m) {
#pragma unroll
    for (int k = 0; k < K; k += N) {
      Pack<A, N> pack;
#pragma unroll
      for (int n = 0; n < N; ++n) pack.v[n] = sums[k + n].at(m);
      store_pack<A, N, Aligned>(slot + int64_t{m} * pairs + k, pack);
    }
  }
}

}  // namespace road::cuda
