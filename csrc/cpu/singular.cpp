// Finds blocks that a backward from the output could not invert.
#include "core/singular.h"

#include "cpu/coefficients.h"
#include "cpu/road_cpu.h"
#include "cpu/sort_rows.h"

namespace road::cpu {

Singular find_singular(const Problem& problem) {
  if (problem.rows == 0) return {};
  const SortedRows sorted(problem);
  AdapterCoefs<double> adapter_coefs(problem);
  const double epsilon = epsilon_of(problem.dtype);
  const int64_t half = problem.group_size / 2, pairs = problem.dim / 2;
  for (int64_t a = 0; a < problem.params.adapters; ++a) {
    if (sorted.begin(a) == sorted.end(a)) continue;
    const Coefs& coefs = adapter_coefs.load(a);
    const double *r1 = static_cast<const double*>(coefs.r1), *r2 = static_cast<const double*>(coefs.r2);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const auto [i, j] = table_entries(coefs.shared, pair, half);
      if (is_singular(r1[i], r1[j], r2[i], r2[j], epsilon))
        return {a, features_of(pair, half).i, determinant(r1[i], r1[j], r2[i], r2[j])};
    }
  }
  return {};
}

}  // namespace road::cpu
