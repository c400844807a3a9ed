// RoPE on rotated heads for any pairs of both: a thread computes the features that it needs, which others compute, too.
// Heads belong to one block, which in place reads all of them before it writes.
#include "cuda/launch.cuh"
#include "cuda/rope.cuh"

namespace road::cuda {
namespace {

constexpr int kBlock = 256;  // threads, where heads are short

struct AnyRopeArguments : PairRows {
  RowMap z;
  TurnMap turn;
  Divisor by_heads;
  int heads, head_dim, turned_heads, rotary_half, rope_half;
  bool in_place;
};

// A row, with the adapter that it uses.
template <class T>
struct Rotated {
  using A = Acc<T>;
  const AnyRopeArguments& a;
  const T* x;
  int id;

  // A feature of R x.
  __device__ __forceinline__ A operator[](int feature) const {
    using P = Halves<T, 1, false>;
    const int half_groups = static_cast<int>(a.half_group.divide(static_cast<uint32_t>(feature)));
    const auto member = pair_of(feature, half_groups, a.half);
    Sides<P, AnyTables, false, 1> h;
    h.load_rows(x + member.first, a.half, 0);
    h.load_coefs(a, id, member.pair, member.first, 0);
    const bool rotates = h.rotates(a, id);
    A i[1], j[1];
    h.get(rotates, 0, 0, i, j);
    return member.is_second ? j[0] : i[0];
  }
};

template <class T>
__global__ void __launch_bounds__(kMostItems, 1) rope_any_kernel(const __grid_constant__ AnyRopeArguments a) {
  using A = Acc<T>;
  const int64_t number = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;  // of a head of a row
  const auto row = static_cast<int64_t>(a.by_heads.divide(static_cast<uint64_t>(number)));
  const int head = static_cast<int>(number - row * a.heads), items = row < a.rows ? a.head_dim - a.rotary_half : 0;
  wait_for_inputs();
  const auto offset = [&](const RowMap& rows) { return items > 0 ? rows.offset(static_cast<uint64_t>(row)) : 0; };
  const int id = items > 0 ? adapter_of(a.ids, id_number(a.ids, row)) : -1;
  const int64_t position = items > 0 ? a.turn.checked(a.turn.load_position(row)) : 0;
  const Rotated<T> rotated{a, static_cast<const T*>(a.x.data) + offset(a.x), id};
  T* z = static_cast<T*>(a.z.data) + offset(a.z) + head * a.head_dim;
#pragma unroll 1
  for (int first = 0; first < a.head_dim - a.rotary_half; first += blockDim.x) {  // in place, all in one round
    const int item = first + threadIdx.x;
    const bool works = item < items, pairs = item < a.rotary_half;
    auto features = features_of(item, a.rope_half);
    if (!pairs) features.i = item + a.rotary_half;
    A zi = 0, zj = 0;
    if (works) {
      zi = rotated[head * a.head_dim + features.i];
      if (pairs) zj = rotated[head * a.head_dim + features.j];
      if (pairs && head < a.turned_heads) {
        const Params& cache = a.turn.cache;
        const A cos = load_as<A>(cache.p, cache.p_dtype, position * cache.p_stride + item);
        const A sin = load_as<A>(cache.q, cache.q_dtype, position * cache.q_stride + item);
        rotate_pair(zi, zj, cos, cos, sin, sin, zi, zj);
      }
    }
    if (a.in_place) __syncthreads();
    if (works) narrow(zi, z[features.i]);
    if (works && pairs) narrow(zj, z[features.j]);
  }
}

}  // namespace

void launch_rope_any(const Problem& problem, const Rows& x, const Rope& rope, const Rows& z, cudaStream_t stream) {
  const int64_t items = rope.head_dim - rope.rotary_dim / 2, heads = problem.dim / rope.head_dim;
  const int columns = static_cast<int>(items < kMostItems ? items : kMostItems);
  const int rows = columns < kBlock ? kBlock / columns : 1;
  const AnyRopeArguments a{pair_rows(problem, x, 1, 1, false),
                           RowMap(z),
                           TurnMap(rope),
                           Divisor(heads),
                           static_cast<int>(heads),
                           static_cast<int>(rope.head_dim),
                           static_cast<int>(rope.turned_heads),
                           static_cast<int>(rope.rotary_dim / 2),
                           static_cast<int>(rope.half()),
                           x.data == z.data};
  with_dtype(problem.dtype, [&](auto t) {
    launch(&rope_any_kernel<decltype(t)>, dim3(static_cast<unsigned>((problem.rows * heads + rows - 1) / rows)),
           dim3(columns, rows), stream, a);
  });
}

}  // namespace road::cuda
