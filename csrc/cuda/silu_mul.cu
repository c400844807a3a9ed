// silu(gate) * up of rotated rows.  Each element is read once and written once.
//
// Blocks are short, as in rotate.cu.  I is a multiple of the group size, so the pair (i, j) of gate, that of up I
// further on, and the pair of outputs belong to one thread.
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/sides.cuh"
#include "cuda/sigmoid.cuh"

namespace road::cuda {
namespace {

struct SiluMulArguments : PairRows {
  RowMap z;
  int apart;  // I
};

template <class T, class P, class Source, bool Shared>
__global__ void __launch_bounds__(kThreads, ROAD_RESIDENT / kThreads)
    silu_mul_kernel(const __grid_constant__ SiluMulArguments a) {
  using A = Acc<T>;
  const ThreadPlace place = place_of_thread(a);
  const int pair = place.number * P::kPairs, at = first_feature<P>(a, pair);
  if (place.row >= a.rows) return wait_for_inputs();
  const T* x = static_cast<const T*>(a.x.data) + a.x.offset(static_cast<uint64_t>(place.row)) + at;
  const int64_t number = id_number(a.ids, place.row);
  if (a.prefetch) {
    const int64_t id = early_id(a.ids, number);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      prefetch_pairs<P>(x + n * a.apart, a.half);
      if (id >= 0)
        Source::template prefetch_coefs<P, Shared>(a.params, 2 * a.half, id, pair + n * (a.apart / 2),
                                                   at + n * a.apart);
    }
  }
  wait_for_inputs();
  Sides<P, Source, Shared, 2> h;  // gate and up
  h.load_rows(x, a.half, a.apart);
  const int id = adapter_of(a.ids, number);
  bool rotates = id >= 0;
  if (rotates) rotates = h.load_coefs(a.params, a.form, 2 * a.half, id, pair, at, a.apart);
  typename P::Packs z;
#pragma unroll
  for (int k = 0; k < P::kPairs; k += P::kUnit) {
    A gate_i[P::kUnit], gate_j[P::kUnit], up_i[P::kUnit], up_j[P::kUnit];
    h.get(rotates, 0, k, gate_i, gate_j);
    h.get(rotates, 1, k, up_i, up_j);
#pragma unroll
    for (int u = 0; u < P::kUnit; ++u) {
      up_i[u] = silu_mul(gate_i[u], up_i[u], sigmoid(gate_i[u]));
      up_j[u] = silu_mul(gate_j[u], up_j[u], sigmoid(gate_j[u]));
    }
    P::set(z, k, up_i, up_j);
  }
  P::store(static_cast<T*>(a.z.data) + a.z.offset(static_cast<uint64_t>(place.row)) + at, a.half, z);
}

}  // namespace

cudaError_t rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  Problem half = problem;  // of gate or up alone
  half.dim /= 2;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t bytes = problem.rows * problem.dim * static_cast<int64_t>(sizeof(T));
    const auto vectorize = [&](int64_t width) {
      return vectorizes(half, x, sizeof(T), width) && vectorizes(half, z, sizeof(T), width);
    };
    with_pairing<T>(problem, bytes <= kFewBytes, vectorize, [&](auto pairing, auto source, auto shared) {
      using P = decltype(pairing);
      const int64_t row_threads = half.dim / 2 / P::kPairs, blocks = blocks_for(problem, row_threads, 1);
      const SiluMulArguments a{pair_rows(problem, x, row_threads, blocks, bytes <= kPrefetchBytes), RowMap(z),
                               static_cast<int>(half.dim)};
      launch(&silu_mul_kernel<T, P, decltype(source), decltype(shared)::value>, dim3(static_cast<unsigned>(blocks)),
             dim3(kThreads), stream, a);
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
