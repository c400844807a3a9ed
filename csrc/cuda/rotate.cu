// Forward, single adapter and mixed batch alike.  Each element is read once and written once.
//
// Blocks are short: a thread takes a pack of pairs in one row (two or four rows where coefficients are costly), loads
// everything at once and ends.  A grid of such blocks sweeps memory in one narrow front, which reaches 99 to 101 % of
// the fastest copy on an H100 where blocks that walk many rows reach 88 to 94 %.  Coefficients come from the caches.
#include "cuda/launch.cuh"
#include "cuda/place.cuh"
#include "cuda/plan.h"
#include "cuda/road_cuda.h"

namespace road::cuda {
namespace {

// Rows of a thread.
template <class Source, bool Shared, bool Adjacent>
constexpr int kRowsPerThread =
    std::is_same_v<Source, AnySource> ? (Shared ? ROAD_ROWS_ANGLES_SHARED : ROAD_ROWS_ANGLES_OWN)
    : !Shared                         ? ROAD_ROWS_TABLES_OWN
    : Adjacent                        ? ROAD_ROWS_TABLES_ADJACENT
                                      : ROAD_ROWS_TABLES_SHARED;

// Threads that must fit on a multiprocessor, which limits their registers.
template <class Source, bool Shared, int R>
constexpr int kResidentThreads = std::is_same_v<Source, AnySource> ? (Shared ? ROAD_RESIDENT : ROAD_RESIDENT_OWN)
                                 : Shared && R == 1                ? ROAD_RESIDENT_TABLES
                                                                   : ROAD_RESIDENT;

struct RotateArguments : PairRows {
  RowMap z;
  bool transposed, in_place;
  bool overlap;  // parameters and ids may be read while the kernel before this one still runs
  bool streams;  // tables are so many that rows, which are needed once, should leave them their place in the cache
};

// Where a thread's row is read, and which id it has.
struct RowPlace {
  int64_t number, x, id;
};

__device__ __forceinline__ RowPlace place_of(const RotateArguments& a, int64_t number) {
  return {number, a.x.offset(static_cast<uint64_t>(number)), id_number(a.ids, number)};
}

// Prefetches what a thread is going to read, while the kernel before this one still runs.
template <class P, bool Shared, class Source>
__device__ __forceinline__ void prefetch_row(const RotateArguments& a, const RowPlace& row, int pair, int at) {
  prefetch_pairs<P>(static_cast<const typename P::Element*>(a.x.data) + row.x + at, a.half);
  if (a.overlap) return;  // then coefficients are loaded as early
  const int64_t id = early_id(a.ids, row.id);
  if (id >= 0) Source::template prefetch_coefs<P, Shared>(a.params, 2 * a.half, id, pair, at);
}

template <class P, class Coefs>
__device__ __forceinline__ void rotate_packs(typename P::Packs& packs, const Coefs& c) {
#pragma unroll
  for (int k = 0; k < P::kPairs; k += P::kUnit) {
    Acc<typename P::Element> i[P::kUnit], j[P::kUnit];
    P::get(packs, k, i, j);
#pragma unroll
    for (int n = 0; n < P::kUnit; ++n)
      rotate_pair(i[n], j[n], c.r1i[k + n], c.r1_j(k + n), c.r2i[k + n], c.r2_j(k + n), i[n], j[n]);
    P::set(packs, k, i, j);
  }
}

// 16-bit rows, beside which tables are large.  Few rows, of which a thread takes less, never do.
template <class P>
constexpr bool kMayStream = P::kAligned && sizeof(typename P::Element) == 2 && sizeof(typename P::Packs) > 16;

template <class P>
__device__ __forceinline__ void load_row(const RotateArguments& a, const typename P::Element* first,
                                         typename P::Packs& packs) {
  if (kMayStream<P> && a.streams) P::template load<true>(first, a.half, packs);
  else P::load(first, a.half, packs);
}
template <class P>
__device__ __forceinline__ void store_row(const RotateArguments& a, typename P::Element* first,
                                          const typename P::Packs& packs) {
  if (kMayStream<P> && a.streams) P::template store<true>(first, a.half, packs);
  else P::store(first, a.half, packs);
}

// R rows a thread.  What needs no memory comes before the wait; rows are loaded before coefficients are made, and with
// several rows of a thread, which are many, nothing is gained by `overlap`.
template <class T, class P, bool Shared, class Source, int R>
__global__ void __launch_bounds__(kThreads, kResidentThreads<Source, Shared, R> / kThreads)
    rotate_kernel(const __grid_constant__ RotateArguments a) {
  using Packs = typename P::Packs;
  using Coefs = PairCoefs<Acc<T>, P::kPairs, Shared>;
  if (a.overlap) let_next_start();
  const ThreadPlace place = place_of_thread(a);
  const int pair = place.number * P::kPairs, at = first_feature<P>(a, pair);
  const T* x = static_cast<const T*>(a.x.data) + at;
  // Worked out when it is needed, and kept in no register before.
  const auto z_of = [&](int64_t row) {
    return static_cast<T*>(a.z.data) + a.z.offset(static_cast<uint64_t>(row)) + at;
  };
  const int64_t first = place.row * R;
  if (first >= a.rows) return wait_for_inputs();
  const auto load_coefs = [&](int id, Coefs& c) {
    Source::template load<P>(a.params, a.form, 2 * a.half, id, pair, at, c);
    if (a.transposed) c.transpose();
  };
  const auto passes = [&](const Coefs& c) {
    return a.ids.data && (!std::is_same_v<Source, AnySource> || !has_angles(a.form)) && c.is_identity();
  };
  // N rows, each with an adapter of its own, of which the first `count` exist.
  const auto rotate_rows = [&](auto n, const auto& rows, int64_t count, bool overlap) {
    constexpr int N = decltype(n)::value;
    Packs packs[N];
    Coefs c[N];
    int64_t given[N];
    int ids[N];
#pragma unroll
    for (int r = 0; r < N; ++r) given[r] = load_id(a.ids, rows[r].id);
#pragma unroll
    for (int r = 0; r < N; ++r)
      if (!overlap && !a.in_place) load_row<P>(a, x + rows[r].x, packs[r]);
#pragma unroll
    for (int r = 0; r < N; ++r) ids[r] = checked_id(given[r], a.ids.adapters);
#pragma unroll
    for (int r = 0; r < N; ++r) {
      if (!overlap && a.in_place && ids[r] >= 0) load_row<P>(a, x + rows[r].x, packs[r]);
      if (r > 0 && ids[r] == ids[0]) c[r] = c[0];
      else if (ids[r] >= 0) load_coefs(ids[r], c[r]);
    }
    if (overlap) wait_for_inputs();
#pragma unroll
    for (int r = 0; r < N; ++r) {
      if (r >= count || (ids[r] < 0 && a.in_place)) continue;  // in place, rows without an adapter are not even read
      if (overlap) load_row<P>(a, x + rows[r].x, packs[r]);
      if (ids[r] >= 0 && !passes(c[r])) rotate_packs<P>(packs[r], c[r]);
      store_row<P>(a, z_of(rows[r].number), packs[r]);
    }
  };
  using One = std::integral_constant<int, 1>;
  if constexpr (R == 1) {
    const RowPlace row[1] = {place_of(a, first)};
    if (a.prefetch) prefetch_row<P, Shared, Source>(a, row[0], pair, at);
    if (!a.overlap) wait_for_inputs();
    rotate_rows(One{}, row, 1, a.overlap);
  } else {
    RowPlace rows[R];
#pragma unroll
    for (int r = 0; r < R; ++r) rows[r] = place_of(a, first + r < a.rows ? first + r : first);
    wait_for_inputs();
    // Tables that a pair shares are so few that each row may have its own.
    if constexpr (Shared && !std::is_same_v<Source, AnySource>)
      return rotate_rows(std::integral_constant<int, R>{}, rows, a.rows - first, false);
    int64_t given[R];
#pragma unroll
    for (int r = 0; r < R; ++r) given[r] = load_id(a.ids, rows[r].id);
    const int id = checked_id(given[0], a.ids.adapters);
    bool one_adapter = true;  // if so, one check is enough
#pragma unroll
    for (int r = 1; r < R; ++r) one_adapter = one_adapter && given[r] == given[0];
    if (!one_adapter || id < 0) {
#pragma unroll 1
      for (int64_t number = first; number < first + R && number < a.rows; ++number) {
        const RowPlace row[1] = {place_of(a, number)};
        rotate_rows(One{}, row, 1, false);
      }
      return;
    }
    Packs packs[R];
#pragma unroll
    for (int r = 0; r < R; ++r) P::load(x + rows[r].x, a.half, packs[r]);  // behind the last row the first one again
    Coefs c;
    load_coefs(id, c);
    const bool rotates = !passes(c);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first + r < a.rows) {
        if (rotates) rotate_packs<P>(packs[r], c);
        P::store(z_of(first + r), a.half, packs[r]);
      }
    }
  }
}

template <class T, class P, bool Shared, class Source, int R>
void launch_rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, bool overlap, bool prefetch,
                   cudaStream_t stream) {
  const int64_t row_threads = problem.dim / 2 / P::kPairs;
  const int64_t blocks = blocks_for(problem, row_threads, R);
  const int64_t tables = problem.params.adapters * problem.dim * size_of(problem.params.p_dtype) * (Shared ? 1 : 2);
  const RotateArguments a{pair_rows(problem, x, row_threads, blocks, prefetch),
                          RowMap(z),
                          transposed,
                          x.data == z.data,
                          overlap,
                          problem.ids.data && problem.ids.rows_per_id == 1 && tables > kStreamBytes &&
                              problem.rows * problem.dim * size_of(problem.dtype) > kTableBytes};
  launch(&rotate_kernel<T, P, Shared, Source, R>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, a);
}

// Of a pairing P: which source the tables can be read with.
template <class T, class P, bool Shared, class Use>
void with_source(const Problem& problem, const Use& use) {
  constexpr int64_t kRun = P::kPairs * (P::kAdjacent && !Shared ? 2 : 1);
  if constexpr (!std::is_same_v<T, double>) {
    if (!has_angles(problem.form)) {
      if (TableSource<4>::fits(problem.params, problem.ids.data, kRun)) return use(TableSource<4>{});
      if (TableSource<2>::fits(problem.params, problem.ids.data, kRun)) return use(TableSource<2>{});
    }
  }
  use(AnySource{});
}

}  // namespace

cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, bool overlap,
                   cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const auto with_shared = [&](auto use) {
      is_shared(problem.form) ? use(std::true_type{}) : use(std::false_type{});
    };
    const int64_t bytes = problem.rows * problem.dim * static_cast<int64_t>(sizeof(T));
    const bool few = bytes <= (has_angles(problem.form) ? kFewBytesAngles : kFewBytes);
    const auto start = [&](auto pairing, auto shared, auto source, auto rows) {
      using S = decltype(source);
      launch_rotate<T, decltype(pairing), decltype(shared)::value, S, decltype(rows)::value>(
          problem, x, z, transposed, overlap, bytes <= kPrefetchBytes, stream);
    };
    const auto vectorize = [&](int64_t bytes) {
      return vectorizes(problem, x, sizeof(T), bytes) && vectorizes(problem, z, sizeof(T), bytes);
    };
    with_shared([&](auto shared) {
      constexpr bool kShared = decltype(shared)::value;
      using One = std::integral_constant<int, 1>;
      const auto with_packs = [&](auto of16, auto of8, auto of_one) {
        if (vectorize(16) && (!few || sizeof(T) == 8)) {
          with_source<T, decltype(of16), kShared>(problem, [&](auto source) {
            start(of16, shared, source,
                  std::integral_constant<int, kRowsPerThread<decltype(source), kShared, decltype(of16)::kAdjacent>>{});
          });
        } else if (sizeof(T) < 8 && vectorize(8)) {
          if constexpr (sizeof(T) < 8)
            with_source<T, decltype(of8), kShared>(problem, [&](auto source) { start(of8, shared, source, One{}); });
        } else {
          start(of_one, shared, AnySource{}, One{});
        }
      };
      if (problem.group_size == 2)
        with_packs(Adjacent<T, N, true>{}, Adjacent<T, N == 2 ? 2 : N / 2, true>{}, Adjacent<T, 2, false>{});
      else with_packs(Halves<T, N, true>{}, Halves<T, N / 2, true>{}, Halves<T, 1, false>{});
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
