// silu(gate) * up of rotated rows, or the gradient of x alone.  Each element is read once and written once.
//
// Blocks are short, as in rotate.cu.  I is a multiple of the group size, so the pair (i, j) of gate, that of up I
// further on, and the pair of outputs belong to one thread.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/sides.cuh"
#include "cuda/sigmoid.cuh"

namespace road::cuda {

// Threads that must fit on a multiprocessor.  A gradient holds more: 96 registers.
template <bool Gradient>
constexpr int kSiluResident = Gradient ? ROAD_RESIDENT : ROAD_RESIDENT_SILU;

struct SiluMulArguments : PairRows {
  RowMap gz;   // of a gradient only
  RowMap out;  // z, or the gradient of x
  int apart;   // I
};

template <class T, class P, class Source, bool Shared, bool Gradient>
__global__ void __launch_bounds__(kThreads, kSiluResident<Gradient> / kThreads)
    silu_mul_kernel(const __grid_constant__ SiluMulArguments a) {
  using A = Acc<T>;
  const ThreadPlace place = place_of_thread(a);
  const int pair = place.number * P::kPairs, at = first_feature<P>(a, pair);
  if (place.row >= a.rows) return wait_for_inputs();
  const auto row = static_cast<uint64_t>(place.row);
  const T* x = static_cast<const T*>(a.x.data) + a.x.offset(row) + at;
  const T* gz = Gradient ? static_cast<const T*>(a.gz.data) + a.gz.offset(row) + at : nullptr;
  const int64_t number = id_number(a.ids, place.row);
  if (a.prefetch) {
    const int64_t id = early_id(a.ids, number);
    if (Gradient) prefetch_pairs<P>(gz, a.half);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      prefetch_pairs<P>(x + n * a.apart, a.half);
      if (id >= 0)
        Source::template prefetch_coefs<P, Shared>(a.params, 2 * a.half, id, pair + n * (a.apart / 2),
                                                   at + n * a.apart);
    }
  }
  wait_for_inputs();
  const int64_t given = load_id(a.ids, number);
  Sides<P, Source, Shared, 2> h;  // gate and up
  h.load_rows(x, a.half, a.apart);
  typename P::Packs z;  // or its gradient
  if (Gradient) P::load(gz, a.half, z);
  const int id = checked_id(given, a.ids.adapters);
  h.load_coefs(a, id, pair, at, a.apart);
  const bool rotates = h.rotates(a, id);
#pragma unroll
  for (int k = 0; k < P::kPairs; k += P::kUnit) {
    A gate_i[P::kUnit], gate_j[P::kUnit], up_i[P::kUnit], up_j[P::kUnit];
    h.get(rotates, 0, k, gate_i, gate_j);
    h.get(rotates, 1, k, up_i, up_j);
    if constexpr (Gradient) {
      A zi[P::kUnit], zj[P::kUnit];
      P::get(z, k, zi, zj);
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u) {
        gradients_through_silu_mul<T>(zi[u], gate_i[u], up_i[u]);
        gradients_through_silu_mul<T>(zj[u], gate_j[u], up_j[u]);
      }
      h.set_gradients(rotates, 0, k, gate_i, gate_j);
      h.set_gradients(rotates, 1, k, up_i, up_j);
    } else {
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u) {
        up_i[u] = silu_mul(gate_i[u], up_i[u], sigmoid<T>(gate_i[u]));
        up_j[u] = silu_mul(gate_j[u], up_j[u], sigmoid<T>(gate_j[u]));
      }
      P::set(z, k, up_i, up_j);
    }
  }
  T* out = static_cast<T*>(a.out.data) + a.out.offset(row) + at;
  if constexpr (Gradient) h.store(out, a.half, a.apart);
  else P::store(out, a.half, z);
}

// gz: of a gradient only.  out: z, or the gradient of x.
template <bool Gradient>
cudaError_t launch_silu_mul(const Problem& problem, const Rows& x, const Rows& gz, const Rows& out,
                            cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  Problem half = problem;  // of gate or up alone
  half.dim /= 2;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t bytes = problem.rows * problem.dim * static_cast<int64_t>(sizeof(T));
    const auto vectorize = [&](int64_t width) {
      return vectorizes(half, x, sizeof(T), width) && vectorizes(half, out, sizeof(T), width) &&
             (!Gradient || vectorizes(half, gz, sizeof(T), width));
    };
    with_pairing<T>(problem, bytes <= kFewBytes, vectorize, [&](auto pairing, auto source, auto shared) {
      using P = decltype(pairing);
      const int64_t row_threads = half.dim / 2 / P::kPairs;
      const int64_t blocks = blocks_for(problem, row_threads, 1);
      const SiluMulArguments a{pair_rows(problem, x, row_threads, blocks, bytes <= kPrefetchBytes), RowMap(gz),
                               RowMap(out), static_cast<int>(half.dim)};
      launch(&silu_mul_kernel<T, P, decltype(source), decltype(shared)::value, Gradient>,
             dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, a);
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
