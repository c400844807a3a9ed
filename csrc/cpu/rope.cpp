// The rotation before RoPE, head by head: in registers where the pairs of both allow it, otherwise R into a buffer that
// stays in the cache, and RoPE from there.
#include <cstring>
#include <vector>

#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {

int64_t first_bad_position(const Rope& rope) {
  for (int64_t k = 0; k < rope.positions.count; ++k) {
    const int64_t position = rope.positions.at(k);
    if (position < 0 || position >= rope.max_position) return k;
  }
  return -1;
}

// Coefficients from pair number `pairs` on, the first of a head.
template <class A>
static Coefs from_pair(const Coefs& coefs, int64_t pairs) {
  const int64_t at = coefs.shared ? pairs : 2 * pairs;
  return {static_cast<const A*>(coefs.r1) + at, static_cast<const A*>(coefs.r2) + at, coefs.shared};
}

template <class A>
static void rotate_rope_as(const Problem& problem, const Rows& qkv, const Rope& rope, const Rows& z,
                           const Parallel& parallel) {
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2;
  const int64_t head = rope.head_dim, turned = rope.rotary_dim, of_v = rope.turned_heads * head;
  const bool in_place = qkv.data == z.data;
  const Kernels& loops = kernels(problem.dtype);
  // Not in 16-bit rows whose half groups are shorter than a vector, where RoPE from the buffer takes wider ones: with
  // group_size 4 in 0.7 x the time, with 8 and 16 in 0.85 to 1.0 (AMD EPYC, one thread).
  const bool wide = half == 1 || half >= 16 || width > 2;
  const bool in_registers = wide && !rope.adjacent && turned == head && head / 2 % problem.group_size == 0;
  const auto rope_head = row_kernels(loops.rope_head, problem);
  const auto widening = row_kernels(loops.rotate_widening, problem);
  const RotateRow turn = loops.rotate_narrowing(Has::kShared, rope.adjacent);
  const RotateRow narrow = loops.rotate_narrowing(Has::kNone, /*adjacent=*/true);
  const RotateRow rotate_row = loops.rotate(is_shared(problem.form), half == 1, /*transposed=*/false);
  visit_rows<A>(problem, /*skip_none=*/false, parallel, [&] {
    return [&, scratch = std::vector<A>(head), widened = std::vector<A>()](int64_t r, const Coefs* coefs) mutable {
      const char* from = row_of(qkv, r, width);
      char* to = writable_row_of(z, r, width);
      const void* row = element(rope.cache, rope.cache_dtype, rope.valid_position(r) * rope.cache_stride);
      const A* cos_sin = as_arithmetic(row, rope.cache_dtype, turned, widened);
      const Coefs of_position{cos_sin, cos_sin + turned / 2, /*shared=*/true};
      for (int64_t h = 0; h < rope.turned_heads; ++h) {
        const int64_t at = h * head;
        const Coefs of_head = coefs ? from_pair<A>(*coefs, at / 2) : Coefs{};
        if (in_registers) {
          rope_head.of(coefs)(from + at * width, to + at * width, of_head, head, half, cos_sin);
          continue;
        }
        widening.of(coefs)(from + at * width, scratch.data(), of_head, head, half);
        turn(scratch.data(), to + at * width, of_position, turned, rope.half());
        narrow(scratch.data() + turned, to + (at + turned) * width, Coefs{}, head - turned, 1);
      }
      if (coefs)
        rotate_row(from + of_v * width, to + of_v * width, from_pair<A>(*coefs, of_v / 2), problem.dim - of_v, half);
      else if (!in_place) std::memcpy(to + of_v * width, from + of_v * width, (problem.dim - of_v) * width);
    };
  });
}

void rotate_rope(const Problem& problem, const Rows& qkv, const Rope& rope, const Rows& z, const Parallel& parallel) {
  with_arithmetic(problem.dtype, [&](auto a) { rotate_rope_as<decltype(a)>(problem, qkv, rope, z, parallel); });
}

}  // namespace road::cpu
