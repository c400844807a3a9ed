// Backward, single adapter and mixed batch alike: one pass over the rows, then a fixed-order reduction.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/coefficients.h"
#include "cpu/moments.h"
#include "cpu/road_cpu.h"
#include "cpu/visit_rows.h"

namespace road::cpu {
namespace {

// A block of sorted rows of one adapter, summed serially.  The blocks depend on the ids and the shape, not on the
// number of threads, and their sums are added in order: this makes the result reproducible.
struct Block {
  int64_t adapter, begin, end;
  int64_t partial;  // where its moments go; -1: the adapter has no other block, or there is no adapter
};

// At most 1024 rows, so that float32 sums stay accurate; about 64 blocks, which keeps any machine busy.
int64_t block_rows(int64_t rows) { return std::clamp<int64_t>((rows + 63) / 64, 64, 1024); }

struct Plan {
  std::vector<Block> blocks;
  std::vector<int64_t> first_partial;  // of each adapter, and one past the last
};

Plan make_plan(const Problem& problem, const SortedRows& sorted) {
  Plan plan;
  const int64_t step = block_rows(problem.rows);
  int64_t partials = 0;
  for (int64_t a = -1; a < problem.params.adapters; ++a) {
    if (a >= 0) plan.first_partial.push_back(partials);
    const int64_t begin = sorted.begin(a), end = sorted.end(a);
    const bool alone = a < 0 || end - begin <= step;
    for (int64_t b = begin; b < end; b += step)
      plan.blocks.push_back({a, b, std::min(b + step, end), alone ? -1 : partials++});
  }
  plan.first_partial.push_back(partials);
  return plan;
}

// `row` is the loop for rows with an adapter, and `none` for those without: null copies gz to gx.
template <class A>
void backward_as(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
                 BackwardRow row, BackwardRow none, const Parallel& parallel) {
  const bool need_gx = out.gx.data != nullptr, need_coefs = need_gx || none;
  const int64_t width = size_of(problem.dtype), half = problem.group_size / 2;
  const SortedRows sorted(problem);
  const Plan plan = make_plan(problem, sorted);
  const int64_t moments_size = MomentsReduction<A>::size(problem);
  std::vector<A> partials(plan.first_partial.back() * moments_size);
  const MomentsReduction<A> reduction(problem, from_output, out);

  const int64_t grain = std::max<int64_t>(1, rows_per_task(problem.dim) / block_rows(problem.rows));
  parallel(0, plan.blocks.size(), grain, [&](int64_t first, int64_t last) {
    AdapterCoefs<A> adapter_coefs(problem);
    std::vector<A> local(moments_size);
    for (int64_t b = first; b < last; ++b) {
      const Block& block = plan.blocks[b];
      A* moments = block.partial < 0 ? local.data() : partials.data() + block.partial * moments_size;
      if (block.partial < 0) std::fill(local.begin(), local.end(), A{});
      for (int64_t k = block.begin; k < block.end; ++k) {
        const int64_t r = sorted.row(k);
        const char* g = static_cast<const char*>(gz.data) + gz.offset(r) * width;
        const char* h = static_cast<const char*>(saved.data) + saved.offset(r) * width;
        char* gx = need_gx ? static_cast<char*>(out.gx.data) + out.gx.offset(r) * width : nullptr;
        if (block.adapter >= 0) {
          const Coefs coefs = need_coefs ? adapter_coefs.load(block.adapter) : Coefs{};
          row(g, h, gx, coefs, problem.dim, half, moments);
        } else if (need_gx && none) {
          none(g, h, gx, Coefs{}, problem.dim, half, nullptr);
        } else if (need_gx) {
          std::memcpy(gx, g, problem.dim * width);
        }
      }
      if (block.adapter >= 0 && block.partial < 0) reduction.finish(block.adapter, moments, 1);
    }
  });

  // Adapters of several blocks; and those without a row, whose gradients are zero.
  parallel(0, problem.params.adapters, rows_per_task(problem.dim), [&](int64_t first, int64_t last) {
    for (int64_t a = first; a < last; ++a) {
      const int64_t begin = plan.first_partial[a], count = plan.first_partial[a + 1] - begin;
      const bool finished = count == 0 && sorted.begin(a) != sorted.end(a);
      if (!finished) reduction.finish(a, partials.data() + begin * moments_size, count);
    }
  });
}

}  // namespace

void backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
              const Parallel& parallel) {
  if (!out.gp && !out.gq) {
    if (out.gx.data) rotate(problem, gz, out.gx, /*transposed=*/true, parallel);
    return;
  }
  const BackwardRow row = kernels(problem.dtype)
                              .backward(is_shared(problem.form), problem.group_size == 2,
                                        /*need_gx=*/out.gx.data != nullptr);
  with_arithmetic(problem.dtype, [&](auto a) {
    backward_as<decltype(a)>(problem, gz, saved, from_output, out, row, /*none=*/nullptr, parallel);
  });
}

void rotate_silu_mul_backward(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out,
                              const Parallel& parallel) {
  const auto rows = row_kernels(kernels(problem.dtype).silu_mul_backward, problem);
  with_arithmetic(problem.dtype, [&](auto a) {
    backward_as<decltype(a)>(problem, gz, x, /*from_output=*/false, out, rows.some, rows.none, parallel);
  });
}

}  // namespace road::cpu
