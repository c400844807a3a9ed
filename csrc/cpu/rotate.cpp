// Forward, single adapter and mixed batch alike.
#include <cstring>

#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {

const char* isa() { return kernels(DType::kBFloat16).isa; }

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
  const RotateRow rotate_row = kernels(problem.dtype).rotate(is_shared(problem.form), half == 1, transposed);
  visit_rows<A>(problem, /*skip_none=*/in_place, parallel, [&] {
    return [&](int64_t r, const Coefs* coefs) {
      const char* from = row_of(x, r, width);
      char* to = writable_row_of(z, r, width);
      if (coefs) rotate_row(from, to, *coefs, problem.dim, half);
      else if (!in_place) std::memcpy(to, from, problem.dim * width);
    };
  });
}

void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel) {
  with_arithmetic(problem.dtype, [&](auto a) { rotate_as<decltype(a)>(problem, x, z, transposed, parallel); });
}

}  // namespace road::cpu
