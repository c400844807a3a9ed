// Forward of the rotation inside silu(gate) * up; its backward is in backward.cpp.
#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {

void rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2;
  const auto rows = row_kernels(kernels(problem.dtype).silu_mul, problem);
  with_arithmetic(problem.dtype, [&](auto a) {
    visit_rows<decltype(a)>(problem, /*skip_none=*/false, parallel, [&] {
      return [&](int64_t r, const Coefs* coefs) {
        rows.of(coefs)(row_of(x, r, width), writable_row_of(z, r, width), coefs ? *coefs : Coefs{}, problem.dim, half);
      };
    });
  });
}

}  // namespace road::cpu
