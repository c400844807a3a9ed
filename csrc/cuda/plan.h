// Which loads a problem allows, and how a backward pass partitions its rows into blocks.
#pragma once

#include "core/divisor.h"
#include "core/problem.h"
#include "cuda/road_cuda.h"
#include "cuda/tuning.h"

namespace road::cuda {

// Whether all elements of every row can be moved `bytes` at a time, without a pair group's halves in one pack: pointer,
// strides, D and half a group.
inline bool vectorizes(const Problem& problem, const Rows& rows, int64_t element_size, int64_t bytes = 16) {
  const int64_t n = bytes / element_size, half = problem.group_size / 2;
  return reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.outer_stride % n == 0 &&
         rows.inner_stride % n == 0 && problem.dim % n == 0 && (half == 1 || half % n == 0);
}

// Rows (of a mixed batch: sorted by adapter) are cut at multiples of block_rows, the last ones in shorter cuts so that
// all multiprocessors end at about the same time, and where the adapter changes.  So a block has the rows of one cut
// that one adapter uses.  Adapters are counted from -1, as 0, 1, ..: block, and slot of the scratch, number s = cut +
// adapter count.  From one block to the next in the order of rows, the cut or the adapter grows and neither falls, so
// numbers are distinct, below row_blocks + adapters + 1; those in between have no rows.
struct Partition {
  int64_t rows = 0;
  int64_t rows_per_id = 1;
  int block_rows = 1, last_rows = 1;     // of a cut
  int64_t last_begin = 0, last_cut = 0;  // from which row, and from which cut, on they have last_rows
  int columns = 1, row_threads = 1;      // threads of a block: side by side in a row, and rows side by side
  int64_t column_blocks = 1;
  int64_t row_blocks = 0;
  bool batched = false;
  Divisor by_block_rows, by_last_rows;

  ROAD_INLINE int64_t cut_of(int64_t row) const {
    if (row < last_begin) return static_cast<int64_t>(by_block_rows.divide(static_cast<uint64_t>(row)));
    return last_cut + static_cast<int64_t>(by_last_rows.divide(static_cast<uint64_t>(row - last_begin)));
  }
  ROAD_INLINE int64_t begin_of(int64_t cut) const {
    return cut < last_cut ? cut * block_rows : last_begin + (cut - last_cut) * last_rows;
  }
  ROAD_INLINE int64_t slots(int64_t adapters) const { return batched ? row_blocks + adapters + 1 : row_blocks; }
};

// `threads_per_row`: pairs in a row / pairs per thread.  `multiprocessors`: of the device.
inline Partition make_partition(const Problem& problem, int64_t threads_per_row, int multiprocessors, int columns) {
  Partition p;
  p.rows = problem.rows;
  p.batched = problem.ids.data;
  if (p.batched) p.rows_per_id = problem.ids.rows_per_id;
  // As wide as `columns` while that leaves at most an eighth of the threads idle at the end of a row.
  p.columns = columns;
  const auto blocks = [&] { return (threads_per_row + p.columns - 1) / p.columns; };
  while (p.columns > 1 && (blocks() * p.columns - threads_per_row) * 8 > blocks() * p.columns) p.columns /= 2;
  p.column_blocks = blocks();
  const bool shared = is_shared(problem.form);
  const int at_once = shared ? kRowsAtOnce<true> : kRowsAtOnce<false>;
  const int block_rows = shared ? kBlockRows<true> : kBlockRows<false>, most = block_rows / at_once;
  p.row_threads = kBackwardThreads / p.columns < most ? kBackwardThreads / p.columns : most;
  // Rows of a block, fewer where those would leave multiprocessors without a block or two.
  const int step = p.row_threads * at_once;
  const int64_t share = p.rows * p.column_blocks / (4 * int64_t{multiprocessors});
  p.block_rows = step;
  while (p.block_rows < block_rows && p.block_rows < share) p.block_rows += step;
  // The last blocks, as many as fit the device at a time.
  const int64_t at_once_blocks = int64_t{multiprocessors} * kBackwardBlocks;
  const int64_t last = (at_once_blocks + p.column_blocks - 1) / p.column_blocks * p.block_rows;
  p.last_cut = p.rows > last ? (p.rows - last) / p.block_rows : 0;
  p.last_begin = p.last_cut * p.block_rows;
  p.last_rows = p.block_rows / ROAD_LAST_ROWS >= step ? p.block_rows / ROAD_LAST_ROWS : p.block_rows;
  p.row_blocks = p.last_cut + (p.rows - p.last_begin + p.last_rows - 1) / p.last_rows;
  p.by_block_rows = Divisor(p.block_rows), p.by_last_rows = Divisor(p.last_rows);
  return p;
}

struct SlotRange {
  int64_t first, count;
};

// The slots of an adapter's sums.
ROAD_INLINE SlotRange slots_of(const Partition& p, const SortedRows& sorted, int64_t adapter) {
  if (!p.batched) return {0, p.row_blocks};
  if (p.rows == 0) return {0, 0};
  const int64_t begin = sorted.starts[adapter] * p.rows_per_id, end = sorted.starts[adapter + 1] * p.rows_per_id;
  if (begin == end) return {0, 0};
  const int64_t first = p.cut_of(begin);
  return {first + adapter + 1, p.cut_of(end - 1) - first + 1};
}

}  // namespace road::cuda
