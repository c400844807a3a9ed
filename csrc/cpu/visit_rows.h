// The rows of a problem with their coefficients, in an order that loads or computes each adapter's seldom.
#pragma once

#include "cpu/coefficients.h"
#include "cpu/parallel.h"
#include "cpu/sort_rows.h"

namespace road::cpu {

// Calls make()'s visit(row, coefs) for every row, on any thread; coefs is null where the row has no adapter, or the
// identity.  make is called once for a run of rows, so that a visitor may own scratch.  `skip_none`: rows without an
// adapter may be left out.
template <class A, class Make>
void visit_rows(const Problem& problem, bool skip_none, const Parallel& parallel, const Make& make) {
  if (problem.rows == 0) return;
  const int64_t grain = rows_per_task(problem.dim);

  if (!problem.ids.data) {  // one adapter: its coefficients are computed once, before the threads start
    AdapterCoefs<A> adapter(problem);
    const Coefs& coefs = adapter.load(0);
    parallel(0, problem.rows, grain, [&](int64_t begin, int64_t end) {
      auto visit = make();
      for (int64_t r = begin; r < end; ++r) visit(r, &coefs);
    });
    return;
  }

  // Where coefficients are ready and at most twice the bytes of a row, rows are visited in the order of memory.
  // 4096 x 4096, adapters at random: 0.65 to 0.75 x the time of adapter by adapter with 8 adapters, 0.7 to 1.0 x with
  // 1000; with four times the bytes 0.9 and 1.15 x (AMD EPYC, one thread).
  //
  // The order of memory reads the tables of every row anew where adapters are many: a bfloat16 row in place moves 4 D
  // bytes, compact float32 tables are 4 D more, and those of one adapter stay in the first-level cache.  So 1000
  // adapters cost 2 x one adapter by the bytes alone (measured 2.1), and 1.5 x with 16-bit tables.  Sorted rows would
  // read tables for a fourth of the rows, 4 of which share an adapter here, but rows of x at random: see above.
  const int64_t coefs_width = 2 * static_cast<int64_t>(sizeof(A)) / (is_shared(problem.form) ? 2 : 1);
  if (AdapterCoefs<A>::are_ready(problem) && coefs_width <= 2 * size_of(problem.dtype)) {
    const Ids& ids = problem.ids;
    int64_t first = 0, last = ids.count;
    if (skip_none) {  // at both ends: an in-place batch without adapters starts no thread
      while (first < last && ids[first] < 0) ++first;
      while (first < last && ids[last - 1] < 0) --last;
    }
    first *= ids.rows_per_id, last *= ids.rows_per_id;
    parallel(first, last, grain, [&](int64_t begin, int64_t end) {
      AdapterCoefs<A> coefs(problem);
      auto visit = make();
      for (int64_t r = begin; r < end; ++r) {
        visit(r, coefs.load_unless_identity(ids.valid_or_none(problem.params.adapters, r / ids.rows_per_id)));
      }
    });
    return;
  }

  const SortedRows sorted(problem);                       // adapter by adapter: coefficients are computed once each
  const int64_t first = skip_none ? sorted.begin(0) : 0;  // pass-through rows come first
  parallel(first, problem.rows, grain, [&](int64_t begin, int64_t end) {
    AdapterCoefs<A> coefs(problem);
    auto visit = make();
    int64_t adapter = sorted.adapter_at(begin);
    for (int64_t k = begin; k < end; ++k) {
      adapter = sorted.adapter_from(k, adapter);
      visit(sorted.row(k), coefs.load_unless_identity(adapter));
    }
  });
}

// A row of a tensor of `width` bytes an element.
inline const char* row_of(const Rows& rows, int64_t r, int64_t width) {
  return static_cast<const char*>(rows.data) + rows.offset(r) * width;
}
inline char* writable_row_of(const Rows& rows, int64_t r, int64_t width) {
  return static_cast<char*>(rows.data) + rows.offset(r) * width;
}

// kernel[coefs != nullptr]: the loop for rows without an adapter, and that for the form of the problem's tables.
template <class Row>
struct RowKernels {
  Row none, some;
  Row of(const Coefs* coefs) const { return coefs ? some : none; }
};
template <class Row>
RowKernels<Row> row_kernels(Row (*choose)(Has, bool), const Problem& problem) {
  const bool adjacent = problem.group_size == 2;
  return {choose(Has::kNone, adjacent), choose(is_shared(problem.form) ? Has::kShared : Has::kFull, adjacent)};
}

}  // namespace road::cpu
