// RoPE beside a rotation.  RoPE rotates pairs of features of a head, too: rotate_pair with the cos of a position for r1
// and its sin for r2, and features_of (pairing.h) says which, so that nothing else of RoPE has to be written.
#pragma once

#include <cstdint>

#include "core/pairing.h"
#include "core/problem.h"

namespace road {

// Row r has position number r % count.
struct Positions {
  const void* data = nullptr;
  bool is_int64 = false;
  int64_t count = 1;

  ROAD_INLINE int64_t at(int64_t k) const {
    return is_int64 ? static_cast<const int64_t*>(data)[k] : static_cast<const int32_t*>(data)[k];
  }
  ROAD_INLINE int64_t operator[](int64_t row) const { return at(row % count); }
};

struct Rope {
  Positions positions;
  const void* cache = nullptr;  // [max_position, rotary_dim]: cos, then sin; the elements of a row are adjacent
  DType cache_dtype = DType::kFloat32;
  int64_t cache_stride = 0;
  int64_t max_position = 0;
  int64_t rotary_dim = 0;  // even, at most head_dim: how many features of a head are turned
  int64_t head_dim = 0;
  int64_t turned_heads = 0;  // those of q and k; the heads of v follow
  bool adjacent = false;     // neighbouring features pair, instead of the halves of rotary_dim

  ROAD_INLINE int64_t half() const { return adjacent ? 1 : rotary_dim / 2; }

  // For positions that were checked before and must not change during the call: never a read outside the cache.
  ROAD_INLINE int64_t valid_position(int64_t row) const {
    const int64_t position = positions[row];
    return position >= 0 && position < max_position ? position : 0;
  }
};

}  // namespace road
