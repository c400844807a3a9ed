// The rows of a mixed batch sorted by adapter, so that a thread computes (or loads) each adapter's coefficients once.
#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace road::cpu {

// A stable counting sort of the ids: O(ids + adapters).  Rows without an adapter (-1) come first.
class SortedRows {
 public:
  explicit SortedRows(const Problem& problem);

  // The row at position `k` of the sorted order.
  int64_t row(int64_t k) const {
    if (order_.empty()) return k;
    if (rows_per_id_ == 1) return order_[k];
    const int64_t id = k / rows_per_id_;
    return order_[id] * rows_per_id_ + (k - id * rows_per_id_);
  }

  // Positions [begin(a), begin(a + 1)) use adapter a, from -1 to adapters - 1.
  int64_t begin(int64_t adapter) const { return starts_[adapter + 1]; }
  int64_t end(int64_t adapter) const { return starts_[adapter + 2]; }

  // The adapter at position k, given that of an earlier position.
  int64_t adapter_from(int64_t k, int64_t adapter) const {
    while (k >= end(adapter)) ++adapter;
    return adapter;
  }
  int64_t adapter_at(int64_t k) const;

 private:
  int64_t rows_per_id_ = 1;
  std::vector<int64_t> order_;   // positions of the ids, sorted by adapter; empty for a single adapter
  std::vector<int64_t> starts_;  // in rows
};

}  // namespace road::cpu
