// The rotation inside the addition of the residual and the RMSNorm of the sum.
#include <vector>

#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {

void rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                         const Rows& y, const Rows& s, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2, dim = problem.dim;
  const auto rows = row_kernels(kernels().add_rms_norm, problem);
  with_arithmetic(problem.dtype, [&](auto a) {
    using A = decltype(a);
    std::vector<A> widened;
    const A* weight = as_arithmetic(norm.weight, norm.weight_dtype, dim, widened);
    visit_rows<A>(problem, /*skip_none=*/false, parallel, [&] {
      return [&, scratch = std::vector<A>(dim)](int64_t r, const Coefs* coefs) mutable {
        rows.of(coefs)(row_of(x, r, width), row_of(residual, r, width), writable_row_of(y, r, width),
                       writable_row_of(s, r, width), coefs ? *coefs : Coefs{}, dim, half, weight, norm.eps,
                       scratch.data());
      };
    });
  });
}

}  // namespace road::cpu
