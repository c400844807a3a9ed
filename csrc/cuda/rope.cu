// RoPE on rotated heads.  Both turn pairs of features, and the pairs of the two cross.
//
// Where few features are closed under both, a thread has them: in the halves of a head that RoPE pairs, the pairs of
// the rotation (groups within a half); or pairs that are the same for both.  Blocks are short, as in rotate.cu.
// Everything else takes what it needs of a head, up to four features for one, which other threads read, too:
// rope_any.cu.
#include "cuda/rope.cuh"

#include "cuda/launch.cuh"

namespace road::cuda {
namespace {

struct RopeArguments : PairRows {
  RowMap z;
  TurnMap turn;
  Divisor units_per_head;
  int units, head_dim, turned_heads, rotary_dim;
  int apart;  // from a pair to the one that RoPE pairs it with
};

// cos and sin of a thread's pairs.  Packed: of the rows' own dtype, and numbers only when they are needed.
template <class P, bool Packed, bool One>
struct Turn {
  using A = Acc<typename P::Element>;
  PairCoefs<A, P::kPairs, One> numbers[1];

  __device__ __forceinline__ void load(const Params& cache, int g, int64_t position, int pair, int at) {
    AlignedTables::load<P>(cache, Form::kTable, g, position, pair, at, 0, numbers);
  }
  __device__ __forceinline__ void get(int k, A (&cos_i)[P::kUnit], A (&cos_j)[P::kUnit], A (&sin_i)[P::kUnit],
                                      A (&sin_j)[P::kUnit]) const {
#pragma unroll
    for (int u = 0; u < P::kUnit; ++u) {
      cos_i[u] = numbers[0].r1i[k + u], cos_j[u] = numbers[0].r1_j(k + u);
      sin_i[u] = numbers[0].r2i[k + u], sin_j[u] = numbers[0].r2_j(k + u);
    }
  }
};
template <class P>
struct Turn<P, true, false> {
  using T = typename P::Element;
  using A = Acc<T>;
  typename P::Packs cos, sin;

  __device__ __forceinline__ void load(const Params& cache, int g, int64_t position, int, int at) {
    P::load(static_cast<const T*>(cache.p) + position * cache.p_stride + at, g / 2, cos);
    P::load(static_cast<const T*>(cache.q) + position * cache.q_stride + at, g / 2, sin);
  }
  __device__ __forceinline__ void get(int k, A (&cos_i)[P::kUnit], A (&cos_j)[P::kUnit], A (&sin_i)[P::kUnit],
                                      A (&sin_j)[P::kUnit]) const {
    P::get(cos, k, cos_i, cos_j);
    P::get(sin, k, sin_i, sin_j);
  }
};

// N = 2: RoPE pairs features of two places, which have the pairs of the rotation each.  N = 1: it turns the same pairs.
template <class T, class P, bool Shared, int N, bool Packed>
__global__ void __launch_bounds__(kThreads, (Packed ? ROAD_RESIDENT_ROPE : ROAD_RESIDENT_OWN) / kThreads)
    rope_kernel(const __grid_constant__ RopeArguments a) {
  using A = Acc<T>;
  const ThreadPlace place = place_of_thread(a);
  if (place.row >= a.rows) return wait_for_inputs();
  const int head = static_cast<int>(a.units_per_head.divide(static_cast<uint32_t>(place.number)));
  const int pair_of_head = (place.number - head * a.units) * P::kPairs, feature = first_feature<P>(a, pair_of_head);
  const int pair = head * (a.head_dim / 2) + pair_of_head, at = head * a.head_dim + feature;
  const T* x = static_cast<const T*>(a.x.data) + a.x.offset(static_cast<uint64_t>(place.row)) + at;
  T* z = static_cast<T*>(a.z.data) + a.z.offset(static_cast<uint64_t>(place.row)) + at;
  const int64_t number = id_number(a.ids, place.row);
  if (a.prefetch) {
    const int64_t id = early_id(a.ids, number);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      prefetch_pairs<P>(x + n * a.apart, a.half);
      if (id >= 0)
        AlignedTables::prefetch_coefs<P, Shared>(a.params, 2 * a.half, id, pair + n * (a.apart / 2), at + n * a.apart);
    }
  }
  wait_for_inputs();
  const int64_t given = load_id(a.ids, number), given_position = a.turn.load_position(place.row);
  Sides<P, AlignedTables, Shared, N> h;
  h.load_rows(x, a.half, a.apart);
  const bool turns = head < a.turned_heads && feature < a.rotary_dim;
  const int id = checked_id(given, a.ids.adapters);
  const int64_t position = a.turn.checked(given_position);
  h.load_coefs(a, id, pair, at, a.apart);
  Turn<P, Packed, N == 1> turn;  // of pairs that are those of the rotation one cos and sin for both features
  if (turns) turn.load(a.turn.cache, 2 * a.half, position, pair_of_head, feature);
  const bool rotates = h.rotates(a, id);
#pragma unroll
  for (int k = 0; k < P::kPairs; k += P::kUnit) {
    A i[N][P::kUnit], j[N][P::kUnit];
#pragma unroll
    for (int n = 0; n < N; ++n) h.get(rotates, n, k, i[n], j[n]);
    if (turns) {
      A cos_i[P::kUnit], cos_j[P::kUnit], sin_i[P::kUnit], sin_j[P::kUnit];
      turn.get(k, cos_i, cos_j, sin_i, sin_j);
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u) {
        if constexpr (N == 2) {
          rotate_pair(i[0][u], i[1][u], cos_i[u], cos_i[u], sin_i[u], sin_i[u], i[0][u], i[1][u]);
          rotate_pair(j[0][u], j[1][u], cos_j[u], cos_j[u], sin_j[u], sin_j[u], j[0][u], j[1][u]);
        } else {
          rotate_pair(i[0][u], j[0][u], cos_i[u], cos_i[u], sin_i[u], sin_i[u], i[0][u], j[0][u]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < N; ++n) P::set(h.packs[n], k, i[n], j[n]);
  }
  h.store(z, a.half, a.apart);
}

// How a thread can have pairs that are closed under both: apart in two places, the same, or not.
enum class Closed { kTwo, kSame, kNot };

Closed closed_under(const Problem& problem, const Rope& rope) {
  const int64_t g = problem.group_size;
  if (!rope.adjacent && rope.rotary_dim == rope.head_dim && rope.rotary_dim / 2 % g == 0) return Closed::kTwo;
  if (!rope.adjacent && g == rope.rotary_dim && g > 2) return Closed::kSame;
  return Closed::kNot;
}

}  // namespace

bool turns_in_place(const Problem&, const Rope& rope) { return rope.head_dim - rope.rotary_dim / 2 <= kMostItems; }

cudaError_t rotate_rope(const Problem& problem, const Rows& x, const Rope& rope, const Rows& z, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const Closed closed = closed_under(problem, rope);
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    const TurnMap turn(rope);
    const int64_t bytes = problem.rows * problem.dim * static_cast<int64_t>(sizeof(T)),
                  places = closed == Closed::kTwo ? 2 : 1;
    Problem part = problem;  // what of a head is one place
    part.dim = places == 2 ? rope.head_dim / 2 : rope.rotary_dim;
    const auto vectorize = [&](int64_t width) {
      const int64_t numbers = width / static_cast<int64_t>(sizeof(T));
      return closed != Closed::kNot && vectorizes(part, x, sizeof(T), width) && vectorizes(part, z, sizeof(T), width) &&
             rope.head_dim % numbers == 0 && rope.rotary_dim / 2 % numbers == 0 &&
             AlignedTables::fits(turn.cache, true, numbers);
    };
    with_pairing<T>(problem, bytes <= kFewBytes, vectorize, [&](auto pairing, auto, auto shared) {
      using P = decltype(pairing);
      if constexpr (P::kAligned) {
        const int64_t units = rope.head_dim / 2 / places / P::kPairs, row_threads = problem.dim / rope.head_dim * units;
        const int64_t blocks = blocks_for(problem, row_threads, 1);
        const RopeArguments a{pair_rows(problem, x, row_threads, blocks, bytes <= kPrefetchBytes),
                              RowMap(z),
                              turn,
                              Divisor(units),
                              static_cast<int>(units),
                              static_cast<int>(rope.head_dim),
                              static_cast<int>(rope.turned_heads),
                              static_cast<int>(rope.rotary_dim),
                              places == 2 ? static_cast<int>(part.dim) : 0};
        constexpr bool kShared = decltype(shared)::value;
        auto* kernel = &rope_kernel<T, P, kShared, 2, false>;
        if constexpr (sizeof(T) == 2)
          if (rope.cache_dtype == problem.dtype) kernel = &rope_kernel<T, P, kShared, 2, true>;
        if constexpr (!P::kAdjacent)
          if (places == 1) kernel = &rope_kernel<T, P, kShared, 1, false>;
        launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, a);
      } else {
        launch_rope_any(problem, x, rope, z, stream);
      }
    });
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
