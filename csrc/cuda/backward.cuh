// The main kernel of a backward, single adapter and mixed batch alike: one pass over the rows, whose sums reduce() then
// adds in a fixed order.
//
// Blocks are short, as in the forward: a tile of columns by up to 64 rows of one adapter, several rows side by side and
// two of each thread in flight.
#pragma once

#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/moments.cuh"
#include "cuda/reduce.h"
#include "cuda/rows.cuh"

namespace road::cuda {

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

// A template parameter Through says where the gradient of R x comes from, for the pairs that a thread has in
// Through::kSides places of a row, and which instance of the kernel a problem takes: see Given in backward.cu.

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
  Work work{p.begin_of(cut), p.begin_of(cut + 1), static_cast<int>(low) - 1};
  if (work.begin < from) work.begin = from;
  if (work.end > to) work.end = to;
  return work;
}

template <class T, class P, bool Shared, class Through>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks)
    backward_kernel(const __grid_constant__ BackwardArguments a, Acc<T>* scratch) {
  using A = Acc<T>;
  using Packs = typename P::Packs;
  using Moments = MomentsOf<A, Shared>;
  constexpr int K = P::kPairs, S = Through::kSides;
  // Two places take twice the registers.
  constexpr int U = S == 1 ? kRowsAtOnce<Shared> : !P::kAligned ? 1 : kRowsAtOnce<Shared> < 2 ? kRowsAtOnce<Shared> : 2;
  __shared__ A shared_sums[K * kMoments<Shared> * kBackwardThreads / 2];
  constexpr int kRows = kBlockRows<Shared>;
  __shared__ int64_t gz_offsets[kRows], saved_offsets[kRows], gx_offsets[kRows];
  wait_for_inputs();
  const int64_t slot = a.by_column_blocks.divide(blockIdx.x);
  const int pair = static_cast<int>((blockIdx.x - slot * a.column_blocks) * blockDim.x + threadIdx.x) * K;
  const bool idle = pair >= a.pairs / S;  // kept for the barriers
  const int at =
      P::kAdjacent ? 2 * pair : pair + static_cast<int>(a.by_half.divide(static_cast<uint32_t>(pair))) * a.half;

  Work work{a.partition.begin_of(slot), a.partition.begin_of(slot + 1), 0};
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

  const bool rotates = !Through::kRecomputes || work.adapter >= 0;
  if constexpr (Through::kRecomputes) {
    if (!rotates && !a.need_gx) return;
  } else if (work.adapter < 0) {  // pass-through rows
    for (int k = threadIdx.y; a.need_gx && !idle && k < count; k += step) {
      Packs packs;
      P::load(gz_row(k), a.half, packs);
      P::store(gx_row(k), a.half, packs);
    }
    return;
  }
  Packs g[U], h[U][S];
  const auto load_rows = [&](int first) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      // Behind the last row the first one again: a branch here would have its sums wait between the loads.
      const int k = first + u * step < count ? first + u * step : first;
      P::load(gz_row(k), a.half, g[u]);
#pragma unroll
      for (int s = 0; s < S; ++s) P::load(saved_row(k) + s * a.pairs, a.half, h[u][s]);
    }
  };
  int first = threadIdx.y;
  const bool works = !idle && first < count;
  if (works) load_rows(first);  // before the coefficients, which take as long as several rows
  PairCoefs<A, K, Shared> c[S];
  if ((Through::kRecomputes ? rotates : a.need_gx) && works)
    Through::template load_coefs<P>(a.params, a.form, 2 * a.half, work.adapter, pair, at, a.pairs, c);
  Moments sums[S][K] = {};
  while (works) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u > 0 && first + u * step >= count) break;
#pragma unroll
      for (int p = 0; p < K; p += P::kUnit) {
        A gi[S][P::kUnit], gj[S][P::kUnit], hi[S][P::kUnit], hj[S][P::kUnit];
#pragma unroll
        for (int s = 0; s < S; ++s) P::get(h[u][s], p, hi[s], hj[s]);
        Through::template gradients<P>(rotates, g[u], p, hi, hj, c, gi, gj);
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
          for (int n = 0; n < P::kUnit; ++n) {
            sums[s][p + n].add(gi[s][n], gj[s][n], hi[s][n], hj[s][n]);
            if (a.need_gx && rotates)
              rotate_pair_transposed<A>(gi[s][n], gj[s][n], c[s].r1i[p + n], c[s].r1_j(p + n), c[s].r2i[p + n],
                                        c[s].r2_j(p + n), gi[s][n], gj[s][n]);
          }
          if (a.need_gx) P::set(Through::gx(g[u], h[u], s), p, gi[s], gj[s]);
        }
      }
      if (a.need_gx) {
        T* gx = gx_row(first + u * step);
#pragma unroll
        for (int s = 0; s < S; ++s) P::store(gx + s * a.pairs, a.half, Through::gx(g[u], h[u], s));
      }
    }
    first += U * step;
    if (first >= count) break;
    load_rows(first);
  }
  if (Through::kRecomputes && !rotates) return;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    add_columns(sums[s], shared_sums);
    if (threadIdx.y == 0 && !idle)
      write_sums<P::kAligned>(sums[s], scratch + slot * kMoments<Shared> * a.pairs + pair + s * (a.pairs / 2), a.pairs);
  }
}

template <class T, class Through, class Use>
void with_instance(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out, const Use& use) {
  Problem side = problem;
  side.dim /= Through::kSides;
  const auto vectorize = [&](int64_t bytes) {
    return vectorizes(side, gz, sizeof(T), bytes) && vectorizes(side, saved, sizeof(T), bytes) &&
           (!out.gx.data || vectorizes(side, out.gx, sizeof(T), bytes));
  };
  Through::template with_instance<T>(problem, vectorize, use);
}

// The partition that scratch and launches follow.
template <class Through>
Partition partition_of(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  int64_t pairs_per_thread = 1;
  with_dtype(problem.dtype, [&](auto t) {
    with_instance<decltype(t), Through>(problem, gz, saved, out,
                                        [&](auto pairing, auto) { pairs_per_thread = decltype(pairing)::kPairs; });
  });
  // One adapter and a gradient of x: half as wide blocks, twice as many, end closer together.
  const bool narrow = out.gx.data && !problem.ids.data && is_shared(problem.form);
  return make_partition(problem, problem.dim / 2 / Through::kSides / pairs_per_thread, multiprocessors(),
                        narrow ? kColumns / 2 : kColumns);
}

template <class Through>
int64_t scratch_of(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  if (!out.gp && !out.gq) return 0;
  const int64_t slots = partition_of<Through>(problem, gz, saved, out).slots(problem.params.adapters);
  return slots * (is_shared(problem.form) ? 1 : 2) * problem.dim;
}

// Both kernels.  `coefficients`: as in backward.
template <class Through>
cudaError_t launch_backward(const Problem& problem, const Problem& coefficients, const Rows& gz, const Rows& saved,
                            bool from_output, const Gradients& out, const SortedRows& sorted, void* scratch,
                            cudaStream_t stream) {
  const Partition partition = partition_of<Through>(problem, gz, saved, out);
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    auto* sums = static_cast<Acc<T>*>(scratch);
    if (problem.rows > 0)
      with_instance<T, Through>(problem, gz, saved, out, [&](auto pairing, auto shared) {
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
        launch(&backward_kernel<T, decltype(pairing), decltype(shared)::value, Through>,
               dim3(static_cast<unsigned>(blocks)), dim3(partition.columns, partition.row_threads), stream, a, sums);
      });
  });
  if (out.gp || out.gq) reduce(problem, partition, sorted, from_output, scratch, out, stream);
  return cudaGetLastError();
}

}  // namespace road::cuda
