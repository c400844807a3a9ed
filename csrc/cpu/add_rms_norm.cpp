// The rotation inside the addition of the residual and the RMSNorm of the sum, and the gradient of that sum.
#include <vector>

#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {

void rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                         const Rows& y, const Rows& s, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2, dim = problem.dim;
  const auto rows = row_kernels(kernels(problem.dtype).add_rms_norm, problem);
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

void add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s, const RmsNorm& norm,
                           const Rows& out, const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), dim = problem.dim;
  const AddRmsNormBackwardRow row = kernels(problem.dtype).add_rms_norm_backward;
  with_arithmetic(problem.dtype, [&](auto a) {
    using A = decltype(a);
    std::vector<A> widened;
    const A* weight = as_arithmetic(norm.weight, norm.weight_dtype, dim, widened);
    parallel(0, problem.rows, rows_per_task(dim), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        row(row_of(gy, r, width), row_of(gs, r, width), row_of(s, r, width), writable_row_of(out, r, width), dim,
            weight, norm.eps);
    });
  });
}

}  // namespace road::cpu
