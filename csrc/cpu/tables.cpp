// The coefficients of all adapters, from their angles.
#include <cstring>

#include "cpu/coefficients.h"
#include "cpu/road_cpu.h"

namespace road::cpu {

void tables(const Problem& problem, void* r1, void* r2, const Parallel& parallel) {
  const int64_t width = is_shared(problem.form) ? problem.dim / 2 : problem.dim;
  parallel(0, problem.params.adapters, rows_per_task(problem.dim), [&](int64_t begin, int64_t end) {
    with_arithmetic(problem.dtype, [&](auto a) {
      using A = decltype(a);
      AdapterCoefs<A> adapter_coefs(problem);
      for (int64_t adapter = begin; adapter < end; ++adapter) {
        const Coefs& coefs = adapter_coefs.load(adapter);
        std::memcpy(static_cast<A*>(r1) + adapter * width, coefs.r1, width * sizeof(A));
        std::memcpy(static_cast<A*>(r2) + adapter * width, coefs.r2, width * sizeof(A));
      }
    });
  });
}

}  // namespace road::cpu
