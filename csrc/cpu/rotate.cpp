// Forward, single adapter and mixed batch alike.
#include <cstring>

#include "adapter.h"
#include "grouping.h"
#include "road_cpu.h"
#include "singular.h"

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

  if (!problem.ids.data) {  // one adapter: its coefficients are built once, before the threads start
    AdapterCoefs<A> adapter(problem);
    const Coefs& coefs = adapter.load(0);
    parallel(0, problem.rows, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        rotate_row(source + x.offset(r) * width, target + z.offset(r) * width, coefs, problem.dim, half);
    });
    return;
  }

  const auto turn = [&](int64_t r, int64_t adapter, AdapterCoefs<A>& coefs) {
    const char* from = source + x.offset(r) * width;
    char* to = target + z.offset(r) * width;
    if (adapter >= 0) rotate_row(from, to, coefs.load(adapter), problem.dim, half);
    else if (!in_place) std::memcpy(to, from, problem.dim * width);
  };

  // Where coefficients are ready and no more than twice the bytes of a row, rows come in the order of memory: 4096 x 4096,
  // adapters at random, takes 0.65 to 0.75 x the time of adapter by adapter with 8 of them, and 0.7 to 1.0 x with 1000.
  // With four times the bytes it took 0.9 and 1.15 x (AMD EPYC, one thread).
  const int64_t coefs_width = 2 * static_cast<int64_t>(sizeof(A)) / (is_shared(problem.form) ? 2 : 1);
  if (AdapterCoefs<A>::are_ready(problem) && coefs_width <= 2 * width) {
    const Ids& ids = problem.ids;
    int64_t first = 0, last = ids.count;
    if (in_place) {  // what stays as it is at either end, which may be all of it, wakes no thread
      while (first < last && ids[first] < 0) ++first;
      while (first < last && ids[last - 1] < 0) --last;
    }
    first *= ids.rows_per_id, last *= ids.rows_per_id;
    parallel(first, last, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
      AdapterCoefs<A> coefs(problem);
      for (int64_t r = begin; r < end; ++r)
        turn(r, ids.held_to(problem.params.adapters, r / ids.rows_per_id), coefs);
    });
    return;
  }

  const Grouping grouping(problem);  // adapter by adapter: each one's coefficients are built once
  const int64_t first = in_place ? grouping.begin(0) : 0;  // rows without an adapter stay as they are
  parallel(first, problem.rows, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
    AdapterCoefs<A> coefs(problem);
    int64_t adapter = grouping.adapter_at(begin);
    for (int64_t k = begin; k < end; ++k) {
      adapter = grouping.adapter_from(k, adapter);
      turn(grouping.row(k), adapter, coefs);
    }
  });
}

void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel) {
  if (problem.rows == 0) return;
  with_arithmetic(problem.dtype, [&](auto a) { rotate_as<decltype(a)>(problem, x, z, transposed, parallel); });
}

Singular find_singular(const Problem& problem) {
  if (problem.rows == 0) return {};
  const Grouping grouping(problem);
  AdapterCoefs<double> adapter_coefs(problem);
  const double epsilon = epsilon_of(problem.dtype);
  const int64_t g = problem.group_size, half = g / 2;
  for (int64_t a = 0; a < problem.params.adapters; ++a) {
    if (grouping.begin(a) == grouping.end(a)) continue;
    const Coefs& coefs = adapter_coefs.load(a);
    const double *r1 = static_cast<const double*>(coefs.r1), *r2 = static_cast<const double*>(coefs.r2);
    for (int64_t base = 0; base < problem.dim; base += g)
      for (int64_t k = 0; k < half; ++k) {
        const int64_t i = coefs.shared ? base / 2 + k : base + k, j = coefs.shared ? i : i + half;
        if (is_singular(r1[i], r1[j], r2[i], r2[j], epsilon))
          return {a, base + k, determinant(r1[i], r1[j], r2[i], r2[j])};
      }
  }
  return {};
}

}  // namespace road::cpu
