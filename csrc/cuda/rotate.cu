// Forward, single adapter and mixed batch alike.  Each element is read once and written once.
#include "choose.h"
#include "road_cuda.h"

namespace road::cuda {

// A block walks consecutive rows; a thread keeps the coefficients of its pairs while the adapter stays the same, so
// that parameters cost nothing on long inputs.  kAhead rows are in flight at a time.
template <class T, class P, bool Shared>
__global__ void __launch_bounds__(kThreads, 2) rotate_kernel(Problem problem, Rows x, Rows z, bool transposed, int64_t block_rows) {
  using A = Acc<T>;
  // Two would need more registers than 8 pairs with four coefficients each leave.
  constexpr int kAhead = Shared || P::kPairs < 8 ? 2 : 1;
  const int half = static_cast<int>(problem.group_size / 2);
  const int pair = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * P::kPairs;
  if (pair >= problem.dim / 2) return;
  const int at = P::first_element(pair, half);
  const T* source = static_cast<const T*>(x.data);
  T* target = static_cast<T*>(z.data);
  const bool in_place = source == target;
  const int64_t begin = int64_t{blockIdx.x} * block_rows;
  const int64_t end = begin + block_rows < problem.rows ? begin + block_rows : problem.rows;

  PairCoefs<A, P::kPairs, Shared> coefs;
  int64_t loaded = -1;
  for (int64_t row = begin + threadIdx.y; row < end; row += kAhead * blockDim.y) {
    typename P::Packs packs[kAhead];
    int64_t ids[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t r = row + u * int64_t{blockDim.y};
      if (r >= end) break;
      ids[u] = problem.ids.data ? checked_id(problem.ids[r / problem.ids.rows_per_id], problem.params.adapters) : 0;
      if (ids[u] >= 0 || !in_place) P::load(source + x.offset(r), at, half, packs[u]);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t r = row + u * int64_t{blockDim.y};
      if (r >= end) break;
      if (ids[u] < 0) {
        if (!in_place) P::store(target + z.offset(r), at, half, packs[u]);
        continue;
      }
      if (ids[u] != loaded) load_coefs<A, P, Shared>(problem, ids[u], pair, half, transposed, coefs);
      loaded = ids[u];
#pragma unroll
      for (int k = 0; k < P::kPairs; ++k) {
        A zi, zj;
        rotate_pair<A>(widen(P::i(packs[u], k)), widen(P::j(packs[u], k)), coefs.r1i[k], coefs.r1_j(k), coefs.r2i[k],
                       coefs.r2_j(k), zi, zj);
        narrow(zi, P::i(packs[u], k));
        narrow(zj, P::j(packs[u], k));
      }
      P::store(target + z.offset(r), at, half, packs[u]);
    }
  }
}

cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, cudaStream_t stream) {
  if (problem.rows == 0) return cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    const bool wide = vectorizes(problem, x, sizeof(T)) && vectorizes(problem, z, sizeof(T));
    with_choice<T>(wide, problem.group_size == 2, is_shared(problem.form), [&](auto choice) {
      using C = decltype(choice);
      using P = typename C::Pairing;
      // 8 blocks of 256 threads are what a multiprocessor holds at most.
      const Plan plan = make_plan(problem.rows, problem.dim / 2 / P::kPairs, 8 * multiprocessors());
      const dim3 grid(static_cast<unsigned>(plan.row_blocks), plan.column_blocks), block(plan.columns, plan.rows);
      ROAD_LAUNCH((rotate_kernel<T, P, C::kShared>), grid, block, stream, problem, x, z, transposed, plan.block_rows);
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
