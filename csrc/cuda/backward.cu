// Backward, single adapter and mixed batch alike: one pass over the rows, then a fixed-order reduction.
#include "cuda/dispatch.h"
#include "cuda/moments.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {

// The row at position k of the sorted order, and for a single adapter k itself.
__device__ __forceinline__ int64_t row_at(const Problem& problem, const SortedRows& sorted, int64_t k) {
  if (!sorted.positions) return k;
  const int64_t n = problem.ids.rows_per_id, id = k / n;
  return sorted.positions[id] * n + (k - id * n);
}

// A block walks consecutive sorted rows and keeps the sums of its pairs in registers; where the adapter changes it
// writes them to scratch and starts from zero.  The sums of block b and adapter a go to slot b + a.  From one written
// slot to the next in the sorted rows, b or a increases and neither decreases, so the slots are distinct and below
// row_blocks + adapters.
template <class T, class P, bool Shared>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Shared>)
    backward_kernel(Problem problem, Rows gz, Rows saved, Rows gx, SortedRows sorted, int64_t block_rows,
                    Acc<T>* scratch) {
  using A = Acc<T>;
  using Packs = typename P::Packs;
  using Moments = MomentsOf<A, Shared>;
  constexpr int K = P::kPairs, kAhead = kRowsAhead<sizeof(Packs), 2>;
  __shared__ A shared_sums[K * kMoments<Shared> * kThreads / 2];
  __shared__ int64_t gz_offsets[kStagedRows], saved_offsets[kStagedRows], gx_offsets[kStagedRows];
  const int half = static_cast<int>(problem.group_size / 2), pairs = static_cast<int>(problem.dim / 2);
  const int pair = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * K;
  const int at = pair < pairs ? P::first_element(pair, half) : -1;  // -1: idle, kept for the barriers
  const bool batched = sorted.ids, need_gx = gx.data;
  const int64_t begin = int64_t{blockIdx.y} * block_rows;
  // A block has fewer than 2^31 rows: they would not fit a device.
  const int end = static_cast<int>(begin + block_rows < problem.rows ? block_rows : problem.rows - begin);

  for (int run = 0; run < end;) {
    int adapter = 0, run_end = end;
    if (batched) {
      adapter = checked_id(sorted.ids[(begin + run) / problem.ids.rows_per_id], problem.params.adapters);
      // The -1 rows end where adapter 0 starts.
      const int64_t next = sorted.starts[adapter + 1] * problem.ids.rows_per_id - begin;
      if (next < end) run_end = static_cast<int>(next);
    }
    Moments sums[K] = {};
    PairCoefs<A, K, Shared> coefs;
    if (at >= 0 && adapter >= 0 && need_gx)
      load_coefs<A, P, Shared>(problem, adapter, pair, half, /*transposed=*/false, coefs);

    for (int chunk = run; chunk < run_end;) {
      int count = run_end - chunk;
      const int64_t first = begin + chunk;
      count = count < kStagedRows ? count : kStagedRows;
      stage_rows(count, [&](int k) {
        const int64_t row = row_at(problem, sorted, first + k);
        gz_offsets[k] = gz.offset(row);
        saved_offsets[k] = saved.offset(row);
        gx_offsets[k] = gx.offset(row);
      });
      const auto gz_row = [&](int k) { return static_cast<const T*>(gz.data) + gz_offsets[k] + at; };
      const auto saved_row = [&](int k) { return static_cast<const T*>(saved.data) + saved_offsets[k] + at; };
      const auto gx_row = [&](int k) { return static_cast<T*>(gx.data) + gx_offsets[k] + at; };
      // `ahead` rows at once, `step` apart, from row k of the chunk.
      const int step = blockDim.y;
      const auto add_rows = [&](auto ahead, int k) {
        constexpr int U = decltype(ahead)::value;
        Packs g[U], h[U];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          P::load(gz_row(k + u * step), half, g[u]);
          P::load(saved_row(k + u * step), half, h[u]);
        }
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
          for (int p = 0; p < K; p += P::kUnit) {
            A gi[P::kUnit], gj[P::kUnit], hi[P::kUnit], hj[P::kUnit];
            P::get(g[u], p, gi, gj);
            P::get(h[u], p, hi, hj);
#pragma unroll
            for (int n = 0; n < P::kUnit; ++n) {
              sums[p + n].add(gi[n], gj[n], hi[n], hj[n]);
              if (need_gx)
                rotate_pair_transposed<A>(gi[n], gj[n], coefs.r1i[p + n], coefs.r1_j(p + n), coefs.r2i[p + n],
                                          coefs.r2_j(p + n), gi[n], gj[n]);
            }
            if (need_gx) P::set(g[u], p, gi, gj);
          }
          if (need_gx) P::store(gx_row(k + u * step), half, g[u]);
        }
      };
      int k = at >= 0 ? threadIdx.y : count;
      if (adapter < 0) {  // pass-through rows
        for (; need_gx && k < count; k += step) {
          Packs packs;
          P::load(gz_row(k), half, packs);
          P::store(gx_row(k), half, packs);
        }
      } else {
        if constexpr (kAhead > 1)
          for (; k + (kAhead - 1) * step < count; k += kAhead * step)
            add_rows(std::integral_constant<int, kAhead>{}, k);
        for (; k < count; k += step) add_rows(std::integral_constant<int, 1>{}, k);
      }
      chunk += count;
    }
    if (adapter >= 0) {
      if (blockDim.y > 1) add_columns(sums, shared_sums);
      A* slot = scratch + (int64_t{blockIdx.y} + adapter) * kMoments<Shared> * pairs + pair;
      // at >= 0 && threadIdx.y == 0 as one comparison: two would occupy one more register across the loops, which
      // spills on compute capability 10.0.
      if (static_cast<int>(threadIdx.y) <= at >> 31) write_sums<P::kAligned>(sums, slot, pairs);
    }
    run = run_end;
  }
}

namespace {

// Queried once, so that the scratch and the launch agree.
template <class T, class P, bool Shared>
int most_blocks() {
  static const int blocks = kBackwardWaves * resident_blocks(&backward_kernel<T, P, Shared>);
  return blocks;
}

// use(choice, plan): the instance of the kernel, and how its rows are partitioned.  Scratch and launch both use it.
template <class T, class Use>
void with_plan(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out, const Use& use) {
  const bool wide = vectorizes(problem, gz, sizeof(T)) && vectorizes(problem, saved, sizeof(T)) &&
                    (!out.gx.data || vectorizes(problem, out.gx, sizeof(T)));
  with_choice<T>(wide, problem.group_size == 2, is_shared(problem.form), [&](auto choice) {
    using C = decltype(choice);
    using P = typename C::Pairing;
    use(choice, make_plan(problem.rows, problem.dim / 2 / P::kPairs, most_blocks<T, P, C::kShared>()));
  });
}

}  // namespace

int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  if (!out.gp && !out.gq) return 0;
  int64_t blocks = 0;
  if (problem.rows > 0)
    with_dtype(problem.dtype, [&](auto t) {
      with_plan<decltype(t)>(problem, gz, saved, out, [&](auto, const Plan& plan) { blocks = plan.row_blocks; });
    });
  return (blocks + problem.params.adapters) * (is_shared(problem.form) ? 1 : 2) * problem.dim;
}

cudaError_t backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
                     const SortedRows& sorted, void* scratch, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (!out.gp && !out.gq) return out.gx.data ? rotate(problem, gz, out.gx, /*transposed=*/true, stream) : cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    auto* sums = static_cast<Acc<T>*>(scratch);
    int64_t block_rows = 1;
    if (problem.rows > 0)
      with_plan<T>(problem, gz, saved, out, [&](auto choice, const Plan& plan) {
        using C = decltype(choice);
        block_rows = plan.block_rows;
        const dim3 grid(static_cast<unsigned>(plan.column_blocks), static_cast<unsigned>(plan.row_blocks));
        ROAD_LAUNCH((backward_kernel<T, typename C::Pairing, C::kShared>), grid, dim3(plan.columns, plan.rows), stream,
                    problem, gz, saved, out.gx, sorted, plan.block_rows, sums);
      });
    launch_reduce(problem, sorted, block_rows, from_output, static_cast<const Acc<T>*>(sums), out, stream);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
