// Z = R W for a matrix whose rows are the features, in one pass.
#include "cpu/coefficients.h"
#include "cpu/road_cpu.h"

namespace road::cpu {

template <class A>
static void merge_as(const Problem& problem, const Matrix& w, const Matrix& z, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2, columns = problem.rows;
  const MergeRows merge_rows = kernels(problem.dtype).merge;
  AdapterCoefs<A> adapter(problem);
  const Coefs& coefs = adapter.load(0);
  const A *r1 = static_cast<const A*>(coefs.r1), *r2 = static_cast<const A*>(coefs.r2);
  const char* source = static_cast<const char*>(w.data);
  char* target = static_cast<char*>(z.data);
  parallel(0, problem.dim / 2, rows_per_task(2 * columns), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const auto [i, j] = features_of(pair, half);
      const auto [a, b] = table_entries(coefs.shared, pair, half);
      const A c[4] = {r1[a], r1[b], r2[a], r2[b]};
      merge_rows(source + i * w.stride * width, source + j * w.stride * width, target + i * z.stride * width,
                 target + j * z.stride * width, columns, c);
    }
  });
}

void merge(const Problem& problem, const Matrix& w, const Matrix& z, const Parallel& parallel) {
  if (problem.rows == 0) return;
  with_arithmetic(problem.dtype, [&](auto a) { merge_as<decltype(a)>(problem, w, z, parallel); });
}

}  // namespace road::cpu
