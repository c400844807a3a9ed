#include "cpu/sort_rows.h"

#include <algorithm>

namespace road::cpu {

SortedRows::SortedRows(const Problem& problem) : rows_per_id_(problem.ids.rows_per_id) {
  const Ids& ids = problem.ids;
  const int64_t adapters = problem.params.adapters;
  starts_.assign(adapters + 2, 0);
  if (!ids.data) {
    starts_[1] = 0;
    std::fill(starts_.begin() + 2, starts_.end(), problem.rows);
    return;
  }
  std::vector<int64_t> read(ids.count);
  for (int64_t k = 0; k < ids.count; ++k) {
    read[k] = ids.valid_or_none(adapters, k);
    ++starts_[read[k] + 2];
  }
  for (int64_t a = 1; a < adapters + 2; ++a) starts_[a] += starts_[a - 1];
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  order_.resize(ids.count);
  for (int64_t k = 0; k < ids.count; ++k) order_[next[read[k] + 1]++] = k;
  for (int64_t& start : starts_) start *= rows_per_id_;
}

int64_t SortedRows::adapter_at(int64_t k) const {
  // The last adapter that starts at or before k; equal starts are adapters without a row.
  return std::upper_bound(starts_.begin(), starts_.end() - 1, k) - starts_.begin() - 2;
}

}  // namespace road::cpu
