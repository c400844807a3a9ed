// s = R x + residual and its RMSNorm.  A row belongs to one block, in whose registers it stays between the sum of
// squares and the end; of a row that does not fit, all is computed a second time.
//
// Squares are added pairwise, in the order of features: the tree of a row does not depend on how its elements could be
// loaded, so its result is bitwise the same wherever it lies in memory.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/row_sum.cuh"
#include "cuda/sides.cuh"

namespace road::cuda {
namespace {

struct NormArguments : PairRows {
  RowMap residual, y, s;
  RmsNorm norm;
  bool same_dtype;  // of weight and rows
  int pairs;        // of a row
  int run;          // pairs side by side that a thread adds up
};

// Adjacent numbers of the features of a thread's pairs.
template <class P, class A, class S>
__device__ __forceinline__ void load_features(const S* first, int half, A (&i)[P::kPairs], A (&j)[P::kPairs]) {
  if constexpr (P::kAdjacent) {
    A both[2 * P::kPairs];
    load_run<P::kAligned>(first, both);
#pragma unroll
    for (int k = 0; k < P::kPairs; ++k) i[k] = both[2 * k], j[k] = both[2 * k + 1];
  } else {
    load_run<P::kAligned>(first, i);
    load_run<P::kAligned>(first + half, j);
  }
}

// s of a thread's pairs.
template <class T, class P, class Source, bool Shared>
struct Sum {
  using A = Acc<T>;
  static constexpr int K = P::kPairs;
  Sides<P, Source, Shared, 1> h;
  typename P::Packs added;
  A i[K], j[K];
  typename P::Packs weight;

  // Weights of the rows' own dtype, packed until they are needed: as numbers they would spill.
  __device__ __forceinline__ void load_weight(const NormArguments& a, int at) {
    if (a.same_dtype) P::load(static_cast<const T*>(a.norm.weight) + at, a.half, weight);
  }
  __device__ __forceinline__ void load(const T* x, const T* residual, int half) {
    h.load_rows(x, half, 0);
    P::load(residual, half, added);
  }
  __device__ __forceinline__ void add(const NormArguments& a, int id, int pair, int at) {
    h.load_coefs(a, id, pair, at, 0);
    const bool rotates = h.rotates(a, id);
#pragma unroll
    for (int k = 0; k < K; k += P::kUnit) {
      A hi[P::kUnit], hj[P::kUnit], ri[P::kUnit], rj[P::kUnit];
      h.get(rotates, 0, k, hi, hj);
      P::get(added, k, ri, rj);
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u) i[k + u] = hi[u] + ri[u], j[k + u] = hj[u] + rj[u];
    }
  }
  __device__ __forceinline__ A squares() const {
    A sums[K];
#pragma unroll
    for (int k = 0; k < K; ++k) sums[k] = std::fma(i[k], i[k], j[k] * j[k]);
#pragma unroll
    for (int step = 1; step < K; step *= 2)
#pragma unroll
      for (int k = 0; k < K; k += 2 * step) sums[k] += sums[k + step];
    return sums[0];
  }
  __device__ __forceinline__ void store(T* first, int half, const A (&vi)[K], const A (&vj)[K]) const {
    typename P::Packs packs;
#pragma unroll
    for (int k = 0; k < K; k += P::kUnit) {
      A ui[P::kUnit], uj[P::kUnit];
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u) ui[u] = vi[k + u], uj[u] = vj[k + u];
      P::set(packs, k, ui, uj);
    }
    P::store(first, half, packs);
  }
  __device__ __forceinline__ void store_normalized(const NormArguments& a, T* first, int at, A scale) const {
    A wi[K], wj[K];
    if (a.same_dtype) {
#pragma unroll
      for (int k = 0; k < K; k += P::kUnit) {
        A ui[P::kUnit], uj[P::kUnit];
        P::get(weight, k, ui, uj);
#pragma unroll
        for (int u = 0; u < P::kUnit; ++u) wi[k + u] = ui[u], wj[k + u] = uj[u];
      }
    } else {
      with_dtype(a.norm.weight_dtype, [&](auto t) {
        load_features<P>(static_cast<const decltype(t)*>(a.norm.weight) + at, a.half, wi, wj);
      });
    }
#pragma unroll
    for (int k = 0; k < K; ++k) wi[k] = normalized(i[k], scale, wi[k]), wj[k] = normalized(j[k], scale, wj[k]);
    store(first, a.half, wi, wj);
  }
};

// One row a block: where it is, is the same for all threads, which leaves them registers.  64 allow 1024 threads; 48 of
// 16-bit rows five blocks of a row of 4096 on a multiprocessor instead of four, because only other blocks hide that an
// id has to arrive before its tables are asked for.
template <class T>
constexpr int kNormRegisters = sizeof(T) == 2 ? ROAD_NORM_REGISTERS : 64;

// Of packs of several pairs, every thread of a row has one.
template <class T, class P, class Source, bool Shared>
__global__ void ROAD_AT_MOST_REGISTERS(kNormRegisters<T>) add_rms_norm_kernel(const __grid_constant__ NormArguments a) {
  using A = Acc<T>;
  __shared__ A shared[32];
  const auto row_of = [](const RowMap& rows) { return static_cast<T*>(rows.data) + rows.offset(blockIdx.x); };
  const T *x = row_of(a.x), *residual = row_of(a.residual);
  const int64_t number = id_number(a.ids, blockIdx.x);
  const int dim = 2 * a.pairs;
  Sum<T, P, Source, Shared> sum;
  A squares = 0;
  if constexpr (P::kAligned) {
    const int pair = threadIdx.x * P::kPairs, at = first_feature<P>(a, pair);
    const bool mine = pair < a.pairs;
    if (a.prefetch && mine) {
      prefetch_pairs<P>(x + at, a.half);
      prefetch_pairs<P>(residual + at, a.half);
      prefetch(static_cast<const char*>(a.norm.weight) + at * size_of(a.norm.weight_dtype));
      const int64_t id = early_id(a.ids, number);
      if (id >= 0) Source::template prefetch_coefs<P, Shared>(a.params, 2 * a.half, id, pair, at);
    }
    wait_for_inputs();
    if (mine) {  // weights of the same dtype as the rows are read in front of the barrier, too
      const int64_t given = load_id(a.ids, number);
      sum.load(x + at, residual + at, a.half);
      sum.load_weight(a, at);
      sum.add(a, checked_id(given, a.ids.adapters), pair, at);
      sum.store(row_of(a.s) + at, a.half, sum.i, sum.j);
      squares = sum.squares();
    }
    const A scale = inverse_rms(add_row(squares, shared), dim, a.norm.eps);
    if (mine) sum.store_normalized(a, row_of(a.y) + at, at, scale);
  } else {
    wait_for_inputs();
    const int id = adapter_of(a.ids, number), step = blockDim.x * a.run;
    const auto load = [&](int pair, int at) {
      sum.load(x + at, residual + at, a.half);
      sum.add(a, id, pair, at);
    };
#pragma unroll 1
    for (int first = threadIdx.x * a.run; first < a.pairs; first += step) {
      A one = 0, two = 0, four = 0, total = 0;  // sums of so many pairs, which wait for as many more
#pragma unroll 1
      for (int n = 0; n < a.run; ++n) {
        total = 0;
        if (first + n < a.pairs) {
          load(first + n, first_feature<P>(a, first + n));
          total = sum.squares();
        }
        if (n % 2 == 0) one = total;
        else total += one;
        if (n % 4 == 1) two = total;
        if (n % 4 == 3) total += two;
        if (n % 8 == 3) four = total;
        if (n % 8 == 7) total += four;
      }
      squares += total;
    }
    const A scale = inverse_rms(add_row(squares, shared), dim, a.norm.eps);
#pragma unroll 1
    for (int first = threadIdx.x * a.run; first < a.pairs; first += step) {
#pragma unroll 1
      for (int pair = first; pair < first + a.run && pair < a.pairs; ++pair) {
        const int at = first_feature<P>(a, pair);
        load(pair, at);
        sum.store(row_of(a.s) + at, a.half, sum.i, sum.j);
        sum.load_weight(a, at);
        sum.store_normalized(a, row_of(a.y) + at, at, scale);
      }
    }
  }
}

template <class T, class P, class Source, bool Shared>
void start(const NormArguments& a, cudaStream_t stream) {
  launch(&add_rms_norm_kernel<T, P, Source, Shared>, dim3(static_cast<unsigned>(a.rows)),
         dim3(threads_for_row((a.pairs + a.run - 1) / a.run)), stream, a);
}

// use(pairing, source, shared): as with_pairing, but whether loads are wide depends on nothing but the kind of rows,
// because it decides which pairs a thread adds up: `width` bytes, or one pair at a time.
template <class T, class Use>
void with_width(const Problem& problem, int64_t width, const Use& use) {
  using Shared = std::true_type;
  using Own = std::false_type;
  if constexpr (sizeof(T) < 8) {
    constexpr int N = 16 / sizeof(T), M = 8 / sizeof(T) < 4 ? 4 : 8 / sizeof(T);
    const bool shared = is_shared(problem.form), adjacent = problem.group_size == 2;
    const int64_t numbers = width / static_cast<int64_t>(sizeof(T)), run = adjacent && shared ? numbers / 2 : numbers;
    if (width > 0 && AlignedTables::fits(problem.params, problem.ids.data, run)) {
      if (adjacent && shared) return use(Adjacent<T, N, true>{}, AlignedTables{}, Shared{});
      if (adjacent) return use(Adjacent<T, N, true>{}, AlignedTables{}, Own{});
      if (shared && numbers == N) return use(Halves<T, N, true>{}, AlignedTables{}, Shared{});
      if (shared) return use(Halves<T, M, true>{}, AlignedTables{}, Shared{});
      return use(Halves<T, M, true>{}, AlignedTables{}, Own{});
    }
  }
  use(Halves<T, 1, false>{}, AnyTables{}, Own{});
}

}  // namespace

cudaError_t rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                                const Rows& y, const Rows& s, cudaStream_t stream) {
  if (!fits(problem) || problem.rows > kMostBlocks) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int64_t kSize = sizeof(T);
    const int64_t pairs = problem.dim / 2, half = problem.group_size / 2;
    // 8 bytes where 16-bit rows have coefficients of their own, and where half a group has no more.
    const bool narrow = kSize == 2 && half > 1 && (!is_shared(problem.form) || half % 8 != 0);
    const int64_t width = narrow ? 8 : 16, run = kSize == 8 ? 1 : width / kSize / (half == 1 ? 2 : 1);
    bool aligned = reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0 && (pairs + run - 1) / run <= kMostThreads;
    for (const Rows* rows : {&x, &residual, &y, &s}) aligned = aligned && vectorizes(problem, *rows, kSize, width);
    const NormArguments a{pair_rows(problem, x, 1, 1, problem.rows * problem.dim * kSize <= kPrefetchBytes),
                          RowMap(residual),
                          RowMap(y),
                          RowMap(s),
                          norm,
                          norm.weight_dtype == problem.dtype,
                          static_cast<int>(pairs),
                          static_cast<int>(run)};
    with_width<T>(problem, aligned ? width : 0, [&](auto pairing, auto source, auto shared) {
      start<T, decltype(pairing), decltype(source), decltype(shared)::value>(a, stream);
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
