// How rows and columns are partitioned into blocks.  Plain host code, shared by the launchers.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cuda/tuning.h"

namespace road::cuda {

struct Plan {
  int columns;            // threads side by side in a row (blockDim.x)
  int rows;               // rows side by side (blockDim.y): with `columns`, kThreads at most
  int64_t column_blocks;  // gridDim.x
  int64_t row_blocks;     // gridDim.y, below 2^16
  int64_t block_rows;     // consecutive rows that a block walks
};

// `threads_per_row`: pairs in a row / pairs per thread.  `blocks_wanted`: enough to fill the device, below 2^15.
inline Plan make_plan(int64_t rows, int64_t threads_per_row, int64_t blocks_wanted) {
  Plan plan;
  plan.column_blocks = (threads_per_row + kThreads - 1) / kThreads;
  const int64_t share = (threads_per_row + plan.column_blocks - 1) / plan.column_blocks;
  plan.columns = 1;
  while (plan.columns < share && plan.columns < 32) plan.columns *= 2;
  // Above 32, whole warps: a row of 96 threads takes 96, not 128; one of 896 takes four blocks of 224, not 256.
  while (plan.columns < share) plan.columns += 32;
  plan.rows = kThreads / plan.columns;
  const int64_t most = (rows + plan.rows - 1) / plan.rows;  // one row per thread, as in a decode step
  // Up to twice as many blocks where they have fewer than kThreads (160 for rows of 5120 in 16 bits, group_size 64).
  blocks_wanted = blocks_wanted * kThreads / (plan.columns * plan.rows);
  int64_t row_blocks = (blocks_wanted + plan.column_blocks - 1) / plan.column_blocks;
  row_blocks = row_blocks < 1 ? 1 : row_blocks > most ? most : row_blocks;
  plan.block_rows = (rows + row_blocks - 1) / row_blocks;
  plan.block_rows = (plan.block_rows + plan.rows - 1) / plan.rows * plan.rows;
  plan.row_blocks = (rows + plan.block_rows - 1) / plan.block_rows;
  return plan;
}

inline bool aligned16(const Rows& rows) { return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0; }

// Whether every thread's elements of every row sit on 16-byte boundaries: pointer, strides, D and half-group.
inline bool vectorizes(const Problem& problem, const Rows& rows, int64_t element_size) {
  const int64_t n = 16 / element_size, half = problem.group_size / 2;
  return aligned16(rows) && rows.outer_stride % n == 0 && rows.inner_stride % n == 0 && problem.dim % n == 0 &&
         (half == 1 || half % n == 0);
}

}  // namespace road::cuda
