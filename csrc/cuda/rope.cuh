// What the kernels of RoPE share: where cos and sin of a row are, and the kernel for any pairs.
#pragma once

#include "core/rope.h"
#include "cuda/road_cuda.h"
#include "cuda/sides.cuh"

namespace road::cuda {

// cos and sin as the tables of a bank, in which the position of a row is its adapter.
struct TurnMap {
  Params cache;
  const void* positions;
  bool is_int64;
  int64_t count;
  Divisor by_count;

  explicit TurnMap(const Rope& rope)
      : positions(rope.positions.data),
        is_int64(rope.positions.is_int64),
        count(rope.positions.count),
        by_count(rope.positions.count) {
    cache.p = rope.cache;
    cache.q = static_cast<const char*>(rope.cache) + rope.rotary_dim / 2 * size_of(rope.cache_dtype);
    cache.p_dtype = cache.q_dtype = rope.cache_dtype;
    cache.p_stride = cache.q_stride = rope.cache_stride;
    cache.adapters = rope.max_position;
  }

  // Not checked yet, which waits for it.
  __device__ __forceinline__ int64_t load_position(int64_t row) const {
    const int64_t k = row - static_cast<int64_t>(by_count.divide(static_cast<uint64_t>(row))) * count;
    return is_int64 ? static_cast<const int64_t*>(positions)[k] : static_cast<const int32_t*>(positions)[k];
  }
  // An invalid one fails an assertion before anything is read with it.
  __device__ __forceinline__ int64_t checked(int64_t position) const {
    assert(position >= 0 && position < cache.adapters && "road_kernels: positions holds one outside cos_sin_cache");
    return position;
  }
};

// Where no thread has pairs to itself.  In place it needs a block with a thread for every item of a head: a pair of
// RoPE, or a feature that is not turned.
constexpr int kMostItems = 1024;
void launch_rope_any(const Problem& problem, const Rows& x, const Rope& rope, const Rows& z, cudaStream_t stream);

}  // namespace road::cuda
