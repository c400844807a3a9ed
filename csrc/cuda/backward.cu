// Backward, single adapter and mixed batch alike: one pass over the rows, then a fixed-order reduction.
//
// Blocks are short, as in the forward: a tile of columns by up to 64 rows of one adapter, several rows side by side and
// two of each thread in flight.
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/road_cuda.h"
#include "cuda/rows.cuh"

namespace road::cuda {
namespace {

struct BackwardArguments {
  RowMap gz, saved, gx;
  Params params;
  Partition partition;
  SortedRows sorted;
  Divisor by_column_blocks, by_rows_per_id, by_half;
  int column_blocks, pairs, half;
  Form form;
  bool need_gx;
  bool staged;  // rows are not a stride apart: their offsets are staged in shared memory
};

// What block number s of a mixed batch has to do; see Partition.  Found by all threads together: each round compares as
// many candidates as there are threads.
struct Work {
  int64_t begin, end;
  int adapter;
};
__device__ __forceinline__ Work work_of(const Partition& p, const SortedRows& sorted, int64_t s, int64_t adapters) {
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const auto begin_of = [&](int64_t count) { return count == 0 ? 0 : sorted.starts[count - 1] * p.rows_per_id; };
  int64_t low = 0, high = adapters + 1;  // the adapter count is in [low, high)
  while (high - low > 1) {
    const int64_t step = (high - low + threads - 1) / threads, candidate = low + (thread + 1) * step;
    const int below = __syncthreads_count(candidate < high && p.cut_of(begin_of(candidate)) + candidate <= s);
    low += below * step;
    high = low + step < high ? low + step : high;
  }
  const int64_t cut = s - low, from = begin_of(low), to = begin_of(low + 1);
  Work work{cut * p.block_rows, (cut + 1) * p.block_rows, static_cast<int>(low) - 1};
  if (work.begin < from) work.begin = from;
  if (work.end > to) work.end = to;
  return work;
}

template <class T, class P, bool Shared>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks)
    backward_kernel(const __grid_constant__ BackwardArguments a, Acc<T>* scratch) {
  using A = Acc<T>;
  using Packs = typename P::Packs;
  using Moments = MomentsOf<A, Shared>;
  constexpr int K = P::kPairs, U = kRowsAtOnce<Shared>;
  __shared__ A shared_sums[K * kMoments<Shared> * kBackwardThreads / 2];
  constexpr int kRows = kBlockRows<Shared>;
  __shared__ int64_t gz_offsets[kRows], saved_offsets[kRows], gx_offsets[kRows];
  wait_for_inputs();
  const int64_t slot = a.by_column_blocks.divide(blockIdx.x);
  const int pair = static_cast<int>((blockIdx.x - slot * a.column_blocks) * blockDim.x + threadIdx.x) * K;
  const bool idle = pair >= a.pairs;  // kept for the barriers
  const int at =
      P::kAdjacent ? 2 * pair : pair + static_cast<int>(a.by_half.divide(static_cast<uint32_t>(pair))) * a.half;

  Work work{slot * a.partition.block_rows, (slot + 1) * a.partition.block_rows, 0};
  if (a.partition.batched) work = work_of(a.partition, a.sorted, slot, a.params.adapters);
  else if (work.end > a.partition.rows) work.end = a.partition.rows;
  if (work.begin >= work.end) return;
  const int count = static_cast<int>(work.end - work.begin), step = blockDim.y;
  if (a.staged) {
    for (int k = threadIdx.y * blockDim.x + threadIdx.x; k < count; k += blockDim.x * blockDim.y) {
      uint64_t row = work.begin + k;
      if (a.partition.batched) {
        const uint64_t id = a.by_rows_per_id.divide(row);
        row += (a.sorted.positions[id] - static_cast<int64_t>(id)) * a.partition.rows_per_id;
      }
      gz_offsets[k] = a.gz.offset(row);
      saved_offsets[k] = a.saved.offset(row);
      gx_offsets[k] = a.gx.offset(row);
    }
    __syncthreads();
  }
  // Addresses are worked out from the arguments for each row: bases would occupy the registers that the sums need.
  const auto offset = [&](const RowMap& rows, const int64_t* staged, int k) {
    return at + (a.staged ? staged[k] : (work.begin + k) * rows.stride);
  };
  const auto gz_row = [&](int k) { return static_cast<const T*>(a.gz.data) + offset(a.gz, gz_offsets, k); };
  const auto saved_row = [&](int k) { return static_cast<const T*>(a.saved.data) + offset(a.saved, saved_offsets, k); };
  const auto gx_row = [&](int k) { return static_cast<T*>(a.gx.data) + offset(a.gx, gx_offsets, k); };

  if (work.adapter < 0) {  // pass-through rows
    for (int k = threadIdx.y; a.need_gx && !idle && k < count; k += step) {
      Packs packs;
      P::load(gz_row(k), a.half, packs);
      P::store(gx_row(k), a.half, packs);
    }
    return;
  }
  Packs g[U], h[U];
  const auto load_rows = [&](int first) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      // Behind the last row the first one again: a branch here would have its sums wait between the loads.
      const int k = first + u * step < count ? first + u * step : first;
      P::load(gz_row(k), a.half, g[u]);
      P::load(saved_row(k), a.half, h[u]);
    }
  };
  int first = threadIdx.y;
  const bool works = !idle && first < count;
  if (works) load_rows(first);  // before the coefficients, which take as long as several rows
  PairCoefs<A, K, Shared> c;
  if (a.need_gx && works) AnySource::load<P>(a.params, a.form, 2 * a.half, work.adapter, pair, at, c);
  Moments sums[K] = {};
  while (works) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u > 0 && first + u * step >= count) break;
#pragma unroll
      for (int p = 0; p < K; p += P::kUnit) {
        A gi[P::kUnit], gj[P::kUnit], hi[P::kUnit], hj[P::kUnit];
        P::get(g[u], p, gi, gj);
        P::get(h[u], p, hi, hj);
#pragma unroll
        for (int n = 0; n < P::kUnit; ++n) {
          sums[p + n].add(gi[n], gj[n], hi[n], hj[n]);
          if (a.need_gx)
            rotate_pair_transposed<A>(gi[n], gj[n], c.r1i[p + n], c.r1_j(p + n), c.r2i[p + n], c.r2_j(p + n), gi[n],
                                      gj[n]);
        }
        if (a.need_gx) P::set(g[u], p, gi, gj);
      }
      if (a.need_gx) P::store(gx_row(first + u * step), a.half, g[u]);
    }
    first += U * step;
    if (first >= count) break;
    load_rows(first);
  }
  add_columns(sums, shared_sums);
  if (threadIdx.y == 0 && !idle)
    write_sums<P::kAligned>(sums, scratch + slot * kMoments<Shared> * a.pairs + pair, a.pairs);
}

// use(pairing, shared): the instance of the kernel.
template <class T, class Use>
void with_instance(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out, const Use& use) {
  // 16 bytes a thread, and 8 where own coefficients and their sums take twice the registers.
  constexpr int N = 16 / sizeof(T), M = N > 2 ? N / 2 : N;
  const auto vectorize = [&](int64_t bytes) {
    return vectorizes(problem, gz, sizeof(T), bytes) && vectorizes(problem, saved, sizeof(T), bytes) &&
           (!out.gx.data || vectorizes(problem, out.gx, sizeof(T), bytes));
  };
  const auto with_packs = [&](auto of16, auto of8, auto of_one) {
    if (is_shared(problem.form)) vectorize(16) ? use(of16, std::true_type{}) : use(of_one, std::true_type{});
    else
      vectorize(problem.group_size == 2 ? 16 : M * sizeof(T)) ? use(of8, std::false_type{})
                                                              : use(of_one, std::false_type{});
  };
  if (problem.group_size == 2) with_packs(Adjacent<T, N, true>{}, Adjacent<T, N, true>{}, Adjacent<T, 2, false>{});
  else with_packs(Halves<T, N, true>{}, Halves<T, M, true>{}, Halves<T, 1, false>{});
}

// The partition that scratch and launches follow.
Partition partition_of(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  int64_t pairs_per_thread = 1;
  with_dtype(problem.dtype, [&](auto t) {
    with_instance<decltype(t)>(problem, gz, saved, out,
                               [&](auto pairing, auto) { pairs_per_thread = decltype(pairing)::kPairs; });
  });
  // One adapter and a gradient of x: half as wide blocks, twice as many, end closer together.
  const bool narrow = out.gx.data && !problem.ids.data && is_shared(problem.form);
  return make_partition(problem, problem.dim / 2 / pairs_per_thread, multiprocessors(),
                        narrow ? kColumns / 2 : kColumns);
}

}  // namespace

int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  if (!out.gp && !out.gq) return 0;
  const int64_t slots = partition_of(problem, gz, saved, out).slots(problem.params.adapters);
  return slots * (is_shared(problem.form) ? 1 : 2) * problem.dim;
}

cudaError_t backward(const Problem& problem, const Problem& coefficients, const Rows& gz, const Rows& saved,
                     bool from_output, const Gradients& out, const SortedRows& sorted, void* scratch,
                     cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (!out.gp && !out.gq)
    return out.gx.data ? rotate(coefficients, gz, out.gx, /*transposed=*/true, /*overlap=*/false, stream) : cudaSuccess;
  const Partition partition = partition_of(problem, gz, saved, out);
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    auto* sums = static_cast<Acc<T>*>(scratch);
    if (problem.rows > 0)
      with_instance<T>(problem, gz, saved, out, [&](auto pairing, auto shared) {
        const int64_t half = problem.group_size / 2, column_blocks = partition.column_blocks;
        BackwardArguments a{RowMap(gz),
                            RowMap(saved),
                            RowMap(out.gx),
                            coefficients.params,
                            partition,
                            sorted,
                            Divisor(column_blocks),
                            Divisor(partition.rows_per_id),
                            Divisor(half),
                            static_cast<int>(column_blocks),
                            static_cast<int>(problem.dim / 2),
                            static_cast<int>(half),
                            coefficients.form,
                            out.gx.data != nullptr,
                            false};
        a.staged = partition.batched || a.gz.jump != 0 || a.saved.jump != 0 || a.gx.jump != 0;
        const int64_t blocks = partition.slots(problem.params.adapters) * column_blocks;
        launch(&backward_kernel<T, decltype(pairing), decltype(shared)::value>, dim3(static_cast<unsigned>(blocks)),
               dim3(partition.columns, partition.row_threads), stream, a, sums);
      });
    launch_reduce(problem, partition, sorted, from_output, static_cast<const Acc<T>*>(sums), out, stream);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
