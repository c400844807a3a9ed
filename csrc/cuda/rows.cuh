// Where rows are, and which adapters they use, as a kernel asks: divisions by launch-time divisors.
#pragma once

#include "core/divisor.h"
#include "core/problem.h"

namespace road::cuda {

// Rows (core/problem.h) with row / inner_rows as a multiplication.  I: uint32_t for row numbers below 2^31, else
// uint64_t.
struct RowMap {
  void* data = nullptr;
  int64_t stride = 0;  // from a row to the next one
  int64_t jump = 0;    // and in addition, after every inner_rows rows
  Divisor inner_rows;

  RowMap() = default;
  explicit RowMap(const Rows& rows) : data(rows.data), stride(rows.outer_stride) {
    if (rows.inner_rows == 1) return;
    stride = rows.inner_stride;
    jump = rows.outer_stride - rows.inner_rows * rows.inner_stride;
    inner_rows = Divisor(rows.inner_rows);
  }

  template <class I>
  ROAD_INLINE int64_t offset(I row) const {
    int64_t elements = static_cast<int64_t>(row) * stride;
    if (jump != 0) elements += static_cast<int64_t>(inner_rows.divide(row)) * jump;
    return elements;
  }
};

// Ids (core/problem.h) of rows.
struct IdMap {
  const void* data = nullptr;  // null: a single adapter, number 0
  bool is_int64 = false;
  int adapters = 1;
  Divisor rows_per_id;

  IdMap() = default;
  explicit IdMap(const Problem& problem)
      : data(problem.ids.data), is_int64(problem.ids.is_int64), adapters(static_cast<int>(problem.params.adapters)) {
    if (data) rows_per_id = Divisor(problem.ids.rows_per_id);
  }
};

}  // namespace road::cuda
