// The arguments of a kernel as plain data: no torch, no ownership.  Sizes and strides are 64 bit and count elements,
// not bytes.  Shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "core/rotate.h"

namespace road {

enum class DType : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

// What the two parameter tensors p and q hold.  D is the width of a row, g the group size; pairing.h has the packing.
enum class Form : int {
  kRoad1,      // theta, alpha [D/2], packed [D/g, g/2]: both rows of a pair share them
  kRoad2,      // theta, alpha [D]
  kRoad4,      // theta, alpha [2D], packed [D/g, 2, g]: slot 0 makes r1, slot 1 makes r2
  kTable,      // r1, r2 [D]
  kTableHalf,  // r1, r2 [D/2], packed like road_1
};

ROAD_INLINE bool has_angles(Form form) { return form <= Form::kRoad4; }
ROAD_INLINE bool is_shared(Form form) { return form == Form::kRoad1 || form == Form::kTableHalf; }
ROAD_INLINE int64_t param_width(Form form, int64_t dim) {
  return is_shared(form) ? dim / 2 : form == Form::kRoad4 ? 2 * dim : dim;
}

// Rows whose elements are adjacent in memory.  Two strides describe every slice of a [B, T, D] tensor.
struct Rows {
  void* data = nullptr;
  int64_t inner_rows = 1;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;

  ROAD_INLINE int64_t offset(int64_t row) const {
    if (inner_rows == 1) return row * outer_stride;
    const int64_t outer = row / inner_rows;
    return outer * outer_stride + (row - outer * inner_rows) * inner_stride;
  }
};

// One adapter, or a bank of them: adapter a starts at p + a * p_stride.
struct Params {
  const void* p = nullptr;  // theta or r1
  const void* q = nullptr;  // alpha or r2
  DType p_dtype = DType::kFloat32;
  DType q_dtype = DType::kFloat32;
  int64_t p_stride = 0;
  int64_t q_stride = 0;
  int64_t adapters = 1;
};

// Which adapter a row uses: id number (row / rows_per_id); -1 is none.  No data: every row uses adapter 0.
struct Ids {
  const void* data = nullptr;
  bool is_int64 = false;
  int64_t count = 0;
  int64_t rows_per_id = 1;

  ROAD_INLINE int64_t operator[](int64_t k) const {
    return is_int64 ? static_cast<const int64_t*>(data)[k] : static_cast<const int32_t*>(data)[k];
  }

  // For ids that were checked before and must not change during the call: one that changed to an invalid value makes a
  // pass-through row, never a read outside the bank.
  ROAD_INLINE int64_t valid_or_none(int64_t adapters, int64_t k) const {
    const int64_t id = (*this)[k];
    return id >= -1 && id < adapters ? id : -1;
  }
};

struct Problem {
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t group_size = 2;
  DType dtype = DType::kFloat32;  // of x, z and their gradients
  Form form = Form::kRoad1;
  Params params;
  Ids ids;
};

// A matrix whose rows are `stride` elements apart; the elements of a row are adjacent.
struct Matrix {
  void* data = nullptr;
  int64_t stride = 0;
};

// Where a backward pass writes.  A null pointer means that the gradient is not needed and not computed.
// gp and gq are contiguous [adapters, param_width] in the dtypes of p and q, and are written whole.
struct Gradients {
  Rows gx;
  void* gp = nullptr;
  void* gq = nullptr;
};

}  // namespace road
