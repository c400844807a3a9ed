// Backward, single adapter and mixed batch alike: one pass over the rows, then a fixed-order reduction.
#include "choose.h"
#include "reduce.cuh"
#include "road_cuda.h"

namespace road::cuda {

// The row at position k of the sorted order, and for a single adapter k itself.
__device__ __forceinline__ int64_t row_at(const Problem& problem, const Order& order, int64_t k) {
  if (!order.positions) return k;
  const int64_t n = problem.ids.rows_per_id, id = k / n;
  return order.positions[id] * n + (k - id * n);
}

// A block walks consecutive sorted rows and keeps the sums of its pairs in registers; where the adapter changes it
// writes them out and starts anew.  The sums of block b and adapter a go to slot b + a: along the sorted rows one of
// the two grows at every change and neither shrinks, so no two share a slot, and row_blocks + adapters slots do.
template <class T, class P, bool Shared>
__global__ void __launch_bounds__(kThreads, 2)
backward_kernel(Problem problem, Rows gz, Rows saved, Rows gx, Order order, int64_t block_rows, Acc<T>* scratch) {
  using A = Acc<T>;
  using Moments = MomentsOf<A, Shared>;
  constexpr int K = P::kPairs;
  __shared__ A shared_sums[kThreads];
  const int half = static_cast<int>(problem.group_size / 2), pairs = static_cast<int>(problem.dim / 2);
  const int pair = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * K;
  const bool active = pair < pairs;  // idle threads stay for the barriers
  const int at = P::first_element(active ? pair : 0, half);
  const int64_t begin = int64_t{blockIdx.x} * block_rows;
  const int64_t end = begin + block_rows < problem.rows ? begin + block_rows : problem.rows;

  for (int64_t run = begin; run < end;) {
    int64_t adapter = 0, run_end = end;
    if (order.ids) {
      adapter = checked_id(order.ids[run / problem.ids.rows_per_id], problem.params.adapters);
      // The -1 rows end where adapter 0 starts.
      const int64_t next = order.starts[adapter + 1] * problem.ids.rows_per_id;
      run_end = next < end ? next : end;
    }
    Moments sums[K] = {};
    PairCoefs<A, K, Shared> coefs;
    if (active && adapter >= 0 && gx.data) load_coefs<A, P, Shared>(problem, adapter, pair, half, true, coefs);
    for (int64_t k = run + threadIdx.y; active && k < run_end; k += blockDim.y) {
      const int64_t row = row_at(problem, order, k);
      typename P::Packs g, h;
      P::load(static_cast<const T*>(gz.data) + gz.offset(row), at, half, g);
      if (adapter >= 0) {
        P::load(static_cast<const T*>(saved.data) + saved.offset(row), at, half, h);
#pragma unroll
        for (int p = 0; p < K; ++p) {
          const A gi = widen(P::i(g, p)), gj = widen(P::j(g, p));
          sums[p].add(gi, gj, widen(P::i(h, p)), widen(P::j(h, p)));
          if (!gx.data) continue;
          A hi, hj;
          rotate_pair<A>(gi, gj, coefs.r1i[p], coefs.r1_j(p), coefs.r2i[p], coefs.r2_j(p), hi, hj);
          narrow(hi, P::i(g, p));
          narrow(hj, P::j(g, p));
        }
      }
      if (gx.data) P::store(static_cast<T*>(gx.data) + gx.offset(row), at, half, g);
    }
    if (adapter >= 0)
      write_sums<A, K>(sums, scratch + (int64_t{blockIdx.x} + adapter) * kMoments<Shared> * pairs, pair, pairs, active, shared_sums);
    run = run_end;
  }
}

namespace {

// What both the scratch size and the launch follow from.
struct Shape {
  bool wide;
  Plan plan;
};

template <class T>
Shape shape_of(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  Shape shape;
  shape.wide = vectorizes(problem, gz, sizeof(T)) && vectorizes(problem, saved, sizeof(T)) &&
               (!out.gx.data || vectorizes(problem, out.gx, sizeof(T)));
  const bool adjacent = problem.group_size == 2;
  const int n = 16 / sizeof(T), pairs = shape.wide ? (adjacent ? n / 2 : n) : 1;
  shape.plan = make_plan(problem.rows, problem.dim / 2 / pairs, 4 * multiprocessors());
  return shape;
}

}  // namespace

int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  if (!out.gp && !out.gq) return 0;
  int64_t blocks = 0;
  if (problem.rows > 0)
    with_dtype(problem.dtype, [&](auto t) { blocks = shape_of<decltype(t)>(problem, gz, saved, out).plan.row_blocks; });
  return (blocks + problem.params.adapters) * (is_shared(problem.form) ? 1 : 2) * problem.dim;
}

cudaError_t backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
                     const Order& order, void* scratch, cudaStream_t stream) {
  if (!out.gp && !out.gq) return out.gx.data ? rotate(problem, gz, out.gx, /*transposed=*/true, stream) : cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    int64_t block_rows = 1;
    if (problem.rows > 0) {
      const Shape shape = shape_of<T>(problem, gz, saved, out);
      const Plan& plan = shape.plan;
      block_rows = plan.block_rows;
      with_choice<T>(shape.wide, problem.group_size == 2, is_shared(problem.form), [&](auto choice) {
        using C = decltype(choice);
        const dim3 grid(static_cast<unsigned>(plan.row_blocks), plan.column_blocks), block(plan.columns, plan.rows);
        ROAD_LAUNCH((backward_kernel<T, typename C::Pairing, C::kShared>), grid, block, stream, problem, gz, saved, out.gx,
                    order, plan.block_rows, static_cast<Acc<T>*>(scratch));
      });
    }
    launch_reduce(problem, order, block_rows, from_output, static_cast<const Acc<T>*>(scratch), out, stream);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
