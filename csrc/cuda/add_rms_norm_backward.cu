// The gradient of s, of which rotate_add_rms_norm stores the RMSNorm.  A row belongs to one block; where it has as many
// threads as packs, all that is loaded is in registers before the barrier.
//
// Which elements a thread adds up depends on the width of a row and not on how they can be loaded, so that a row's
// gradient is bitwise the same wherever it lies in memory.
#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/row_sum.cuh"
#include "cuda/rows.cuh"

namespace road::cuda {
namespace {

struct NormBackwardArguments {
  RowMap gy, gs, s, out;
  RmsNorm norm;
  int dim;
};

// How many threads a row has depends on its width only, so that its sums do, too: a pack a thread, in wide rows two.
constexpr int64_t kWide = 128, kMostColumns = 512;  // packs, threads of a row
inline int64_t columns_for(int64_t packs) {
  const int64_t columns = packs > kWide ? (packs + 1) / 2 : packs;
  return columns < kMostColumns ? columns : kMostColumns;
}

// What a thread has of a row in one place.
template <class T, int N, bool Aligned>
struct Loaded {
  Pack<T, N> s, gs, gy;
  Acc<T> weight[N];

  __device__ __forceinline__ void load_weight(const RmsNorm& norm, int first) {
    with_dtype(norm.weight_dtype,
               [&](auto w) { load_run<Aligned>(static_cast<const decltype(w)*>(norm.weight) + first, weight); });
  }
  // visit(k, s, gs, gn): of the numbers [k, k + kUnit); gn is the gradient of y times the weight.
  static constexpr int kUnit = N == 1 ? 1 : 2;
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < N; k += kUnit) {
      Acc<T> own[kUnit], given[kUnit], gn[kUnit];
      widen(s.v + k, own);
      widen(gs.v + k, given);
      widen(gy.v + k, gn);
#pragma unroll
      for (int u = 0; u < kUnit; ++u) gn[u] *= weight[k + u];
      visit(k, own, given, gn);
    }
  }
  __device__ __forceinline__ void add_to(Acc<T> (&sums)[2]) const {
    for_each([&](int, const auto& own, const auto&, const auto& gn) {
#pragma unroll
      for (int u = 0; u < kUnit; ++u) sums[0] += own[u] * own[u], sums[1] += gn[u] * own[u];
    });
  }
  __device__ __forceinline__ void store(T* out, Acc<T> scale, Acc<T> through) const {
    Pack<T, N> pack;
    for_each([&](int k, const auto& own, const auto& given, auto& gn) {
#pragma unroll
      for (int u = 0; u < kUnit; ++u) gn[u] = normalized_gradient<Acc<T>>(given[u], gn[u], own[u], scale, through);
      narrow(gn, pack.v + k);
    });
    store_pack<T, N, Aligned>(out, pack);
  }
};

// Blocks that must fit on a multiprocessor, which leaves 40 registers for one pack, and 64 for two; float64 takes twice
// as many.
template <class T, int V>
constexpr int kNormBlocks = (V == 1 ? 12 : 2) / (sizeof(T) == 8 ? 2 : 1);

// V: packs of a thread, all loaded before the barrier.  0: any number of them, loaded twice.
template <class T, int N, bool Aligned, int V>
__global__ void __launch_bounds__(V == 1 ? kWide : kMostColumns, kNormBlocks<T, V>)
    add_rms_norm_backward_kernel(const __grid_constant__ NormBackwardArguments a) {
  using A = Acc<T>;
  __shared__ A shared[2 * 32];
  const auto row_of = [](const RowMap& rows) { return static_cast<T*>(rows.data) + rows.offset(blockIdx.x); };
  const T *gy = row_of(a.gy), *gs = row_of(a.gs), *s = row_of(a.s);
  T* out = row_of(a.out);
  const int begin = threadIdx.x * N, step = blockDim.x * N;
  A sums[2] = {};  // of the squares of s, and of its products with gn
  wait_for_inputs();
  Loaded<T, N, Aligned> loaded[V > 0 ? V : 1];
  const auto load = [&](int first, Loaded<T, N, Aligned>& to) {
    to.s = load_pack<T, N, Aligned>(s + first);
    to.gs = load_pack<T, N, Aligned>(gs + first);
    to.gy = load_pack<T, N, Aligned>(gy + first);
  };
  const auto finish = [&] {
    add_row(sums, shared);
    const A scale = inverse_rms(sums[0], a.dim, a.norm.eps);
    sums[0] = scale, sums[1] = through_scale(sums[1], a.dim, scale);
  };
  if constexpr (V > 0) {
    const auto for_each = [&](const auto& visit) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (begin + v * step < a.dim) visit(begin + v * step, loaded[v]);
    };
    for_each(load);
#if !defined(ROAD_CUDA_SHIM)
    asm volatile("" ::: "memory");  // or the compiler moves these loads behind the branches on the weight's dtype
#endif
    for_each([&](int first, auto& l) { l.load_weight(a.norm, first); });
    for_each([&](int, auto& l) { l.add_to(sums); });
    finish();
    for_each([&](int first, auto& l) { l.store(out + first, sums[0], sums[1]); });
  } else {
    const auto for_each = [&](const auto& visit) {
#pragma unroll 1
      for (int first = begin; first < a.dim; first += step) {
        load(first, loaded[0]);
        loaded[0].load_weight(a.norm, first);
        visit(first);
      }
    };
    for_each([&](int) { loaded[0].add_to(sums); });
    finish();
    for_each([&](int first) { loaded[0].store(out + first, sums[0], sums[1]); });
  }
}

}  // namespace

cudaError_t add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                  const RmsNorm& norm, const Rows& out, cudaStream_t stream) {
  if (!fits(problem) || problem.rows > kMostBlocks) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const NormBackwardArguments a{RowMap(gy), RowMap(gs), RowMap(s), RowMap(out), norm, static_cast<int>(problem.dim)};
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const auto start = [&](auto* kernel, int64_t packs) {
      launch(kernel, dim3(static_cast<unsigned>(problem.rows)), dim3(threads_for_row(columns_for(packs))), stream, a);
    };
    if (problem.dim % N != 0) return start(&add_rms_norm_backward_kernel<T, 1, false, 0>, problem.dim);
    bool aligned = reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0;
    for (const Rows* rows : {&gy, &gs, &s, &out})
      aligned = aligned && reinterpret_cast<uintptr_t>(rows->data) % 16 == 0 && rows->outer_stride % N == 0 &&
                rows->inner_stride % N == 0;
    const int64_t packs = problem.dim / N;
    if (!aligned) start(&add_rms_norm_backward_kernel<T, N, false, 0>, packs);
    else if (packs <= kWide) start(&add_rms_norm_backward_kernel<T, N, true, 1>, packs);
    else if (packs <= 2 * kMostColumns) start(&add_rms_norm_backward_kernel<T, N, true, 2>, packs);
    else start(&add_rms_norm_backward_kernel<T, N, true, 0>, packs);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
