// Forward, single adapter and mixed batch alike.
#include <cstring>

#include "cpu/coefficients.h"
#include "cpu/road_cpu.h"
#include "cpu/sort_rows.h"

namespace road::cpu {

const char* isa() { return kernels().isa; }

int64_t first_bad_id(const Problem& problem) {
  if (!problem.ids.data) return -1;
  for (int64_t k = 0; k < problem.ids.count; ++k) {
    const int64_t id = problem.ids[k];
    if (id < -1 || id >= problem.params.adapters) return k;
  }
  return -1;
}

template <class A>
static void rotate_as(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2;
  const bool in_place = x.data == z.data;
  const RotateRow rotate_row = kernels().rotate(problem.dtype, is_shared(problem.form), half == 1, transposed);
  const char* source = static_cast<const char*>(x.data);
  char* target = static_cast<char*>(z.data);

  if (!problem.ids.data) {  // one adapter: its coefficients are computed once, before the threads start
    AdapterCoefs<A> adapter(problem);
    const Coefs& coefs = adapter.load(0);
    parallel(0, problem.rows, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        rotate_row(source + x.offset(r) * width, target + z.offset(r) * width, coefs, problem.dim, half);
    });
    return;
  }

  const auto rotate_one = [&](int64_t r, int64_t adapter, AdapterCoefs<A>& coefs) {
    const char* from = source + x.offset(r) * width;
    char* to = target + z.offset(r) * width;
    if (adapter >= 0) rotate_row(from, to, coefs.load(adapter), problem.dim, half);
    else if (!in_place) std::memcpy(to, from, problem.dim * width);
  };

  // Where coefficients are ready and at most twice the bytes of a row, rows are visited in the order of memory.
  // 4096 x 4096, adapters at random: 0.65 to 0.75 x the time of adapter by adapter with 8 adapters, 0.7 to 1.0 x with
  // 1000; with four times the bytes 0.9 and 1.15 x (AMD EPYC, one thread).
  const int64_t coefs_width = 2 * static_cast<int64_t>(sizeof(A)) / (is_shared(problem.form) ? 2 : 1);
  if (AdapterCoefs<A>::are_ready(problem) && coefs_width <= 2 * width) {
    const Ids& ids = problem.ids;
    int64_t first = 0, last = ids.count;
    if (in_place) {  // skip the pass-through rows at both ends: a batch without adapters starts no thread
      while (first < last && ids[first] < 0) ++first;
      while (first < last && ids[last - 1] < 0) --last;
    }
    first *= ids.rows_per_id, last *= ids.rows_per_id;
    parallel(first, last, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
      AdapterCoefs<A> coefs(problem);
      for (int64_t r = begin; r < end; ++r)
        rotate_one(r, ids.valid_or_none(problem.params.adapters, r / ids.rows_per_id), coefs);
    });
    return;
  }

  const SortedRows sorted(problem);                      // adapter by adapter: coefficients are computed once each
  const int64_t first = in_place ? sorted.begin(0) : 0;  // pass-through rows come first
  parallel(first, problem.rows, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
    AdapterCoefs<A> coefs(problem);
    int64_t adapter = sorted.adapter_at(begin);
    for (int64_t k = begin; k < end; ++k) {
      adapter = sorted.adapter_from(k, adapter);
      rotate_one(sorted.row(k), adapter, coefs);
    }
  });
}

void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel) {
  if (problem.rows == 0) return;
  with_arithmetic(problem.dtype, [&](auto a) { rotate_as<decltype(a)>(problem, x, z, transposed, parallel); });
}

}  // namespace road::cpu
