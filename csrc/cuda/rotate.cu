// Forward, single adapter and mixed batch alike.  Each element is read once and written once.
#include "cuda/dispatch.h"
#include "cuda/road_cuda.h"

namespace road::cuda {

// A block walks consecutive rows.  A thread keeps the coefficients of its pairs until the adapter changes, so that
// parameters cost nothing on long inputs.  kAhead rows of one adapter are loaded at once; where the adapter changes,
// one row and the coefficients.
template <class T, class P, bool Shared>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Shared>)
    rotate_kernel(Problem problem, Rows x, Rows z, bool transposed, int64_t block_rows) {
  using A = Acc<T>;
  using Packs = typename P::Packs;
  constexpr int K = P::kPairs, kAhead = kRowsAhead<sizeof(Packs), 1>;
  __shared__ int row_ids[kStagedRows];
  __shared__ int64_t x_offsets[kStagedRows], z_offsets[kStagedRows];
  const int half = static_cast<int>(problem.group_size / 2);
  const int pair = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * K;
  const int at = pair < problem.dim / 2 ? P::first_element(pair, half) : -1;  // -1: idle, kept for the barriers
  const bool in_place = x.data == z.data, batched = problem.ids.data;
  const bool staged = batched || x.inner_rows != 1 || z.inner_rows != 1;
  const int64_t begin = int64_t{blockIdx.y} * block_rows;
  // A block has fewer than 2^31 rows: they would not fit a device.
  const int end = static_cast<int>(begin + block_rows < problem.rows ? block_rows : problem.rows - begin);

  PairCoefs<A, K, Shared> coefs;
  int loaded = -2;  // none; -1 is an id
  const auto rotate_packs = [&](Packs& packs) {
#pragma unroll
    for (int k = 0; k < K; k += P::kUnit) {
      A i[P::kUnit], j[P::kUnit];
      P::get(packs, k, i, j);
#pragma unroll
      for (int n = 0; n < P::kUnit; ++n)
        rotate_pair<A>(i[n], j[n], coefs.r1i[k + n], coefs.r1_j(k + n), coefs.r2i[k + n], coefs.r2_j(k + n), i[n],
                       j[n]);
      P::set(packs, k, i, j);
    }
  };

  for (int chunk = 0; chunk < end;) {
    int count = end - chunk;
    const T* source = static_cast<const T*>(x.data) + at;
    T* target = static_cast<T*>(z.data) + at;
    if (staged) {
      count = count < kStagedRows ? count : kStagedRows;
      stage_rows(count, [&](int k) {
        const int64_t row = begin + chunk + k;
        if (batched) row_ids[k] = checked_id(problem.ids[row / problem.ids.rows_per_id], problem.params.adapters);
        x_offsets[k] = x.offset(row);
        z_offsets[k] = z.offset(row);
      });
    } else {
      source += (begin + chunk) * x.outer_stride;
      target += (begin + chunk) * z.outer_stride;
    }
    const auto id_of = [&](int k) { return batched ? row_ids[k] : 0; };
    const auto x_row = [&](int k) { return source + (staged ? x_offsets[k] : k * x.outer_stride); };
    const auto z_row = [&](int k) { return target + (staged ? z_offsets[k] : k * z.outer_stride); };
    const int step = blockDim.y;
    for (int k = threadIdx.y; at >= 0 && k < count;) {
      const int id = id_of(k);
      bool same = k + (kAhead - 1) * step < count && (id == loaded || id < 0);
#pragma unroll
      for (int u = 1; u < kAhead; ++u) same = same && id_of(k + u * step) == id;
      if (same) {
        if (id >= 0 || !in_place) {
          Packs packs[kAhead];
#pragma unroll
          for (int u = 0; u < kAhead; ++u) P::load(x_row(k + u * step), half, packs[u]);
#pragma unroll
          for (int u = 0; u < kAhead; ++u) {
            if (id >= 0) rotate_packs(packs[u]);
            P::store(z_row(k + u * step), half, packs[u]);
          }
        }
        k += kAhead * step;
        continue;
      }
      if (id >= 0 || !in_place) {
        Packs packs;
        P::load(x_row(k), half, packs);  // in flight while the coefficients are computed
        if (id >= 0) {
          if (id != loaded) load_coefs<A, P, Shared>(problem, loaded = id, pair, half, transposed, coefs);
          rotate_packs(packs);
        }
        P::store(z_row(k), half, packs);
      }
      k += step;
    }
    chunk += count;
  }
}

cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    const bool wide = vectorizes(problem, x, sizeof(T)) && vectorizes(problem, z, sizeof(T));
    with_choice<T>(wide, problem.group_size == 2, is_shared(problem.form), [&](auto choice) {
      using C = decltype(choice);
      using P = typename C::Pairing;
      const auto kernel = &rotate_kernel<T, P, C::kShared>;
      static const int blocks = kForwardWaves * resident_blocks(kernel);
      const Plan plan = make_plan(problem.rows, problem.dim / 2 / P::kPairs, blocks);
      const dim3 grid(static_cast<unsigned>(plan.column_blocks), static_cast<unsigned>(plan.row_blocks));
      ROAD_LAUNCH(kernel, grid, dim3(plan.columns, plan.rows), stream, problem, x, z, transposed, plan.block_rows);
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
