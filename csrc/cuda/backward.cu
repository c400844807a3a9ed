// Gradients of rotate.
#include "cuda/backward.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {
namespace {

// The gradient of R x is what comes in.
struct Given {
  static constexpr int kSides = 1;
  static constexpr bool kRecomputes = false;  // from R x, which takes the coefficients

  template <class P, class A, bool Shared>
  static __device__ __forceinline__ void load_coefs(const Params& params, Form form, int g, int adapter, int pair,
                                                    int at, int, PairCoefs<A, P::kPairs, Shared> (&c)[1]) {
    AnySource::load<P>(params, form, g, adapter, pair, at, c[0]);
  }
  template <class P, class A, class Coefs>
  static __device__ __forceinline__ void gradients(bool, const typename P::Packs& g, int k, const A (&)[1][P::kUnit],
                                                   const A (&)[1][P::kUnit], const Coefs (&)[1], A (&gi)[1][P::kUnit],
                                                   A (&gj)[1][P::kUnit]) {
    P::get(g, k, gi[0], gj[0]);
  }
  // Where the gradient of x is put together: of a pass-through row it is there.
  template <class Packs>
  static __device__ __forceinline__ Packs& gx(Packs& g, Packs (&)[1], int) {
    return g;
  }

  // use(pairing, shared).  vectorizes(bytes): whether rows can be moved so many bytes at a time.
  template <class T, class Vectorizes, class Use>
  static void with_instance(const Problem& problem, const Vectorizes& vectorizes, const Use& use) {
    // 16 bytes a thread, and 8 where own coefficients and their sums take twice the registers.
    constexpr int N = 16 / sizeof(T), M = N > 2 ? N / 2 : N;
    const auto with_packs = [&](auto of16, auto of8, auto of_one) {
      if (is_shared(problem.form)) vectorizes(16) ? use(of16, std::true_type{}) : use(of_one, std::true_type{});
      else
        vectorizes(problem.group_size == 2 ? 16 : M * sizeof(T)) ? use(of8, std::false_type{})
                                                                 : use(of_one, std::false_type{});
    };
    if (problem.group_size == 2) with_packs(Adjacent<T, N, true>{}, Adjacent<T, N, true>{}, Adjacent<T, 2, false>{});
    else with_packs(Halves<T, N, true>{}, Halves<T, M, true>{}, Halves<T, 1, false>{});
  }
};

}  // namespace

int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  return scratch_of<Given>(problem, gz, saved, out);
}

cudaError_t backward(const Problem& problem, const Problem& coefficients, const Rows& gz, const Rows& saved,
                     bool from_output, const Gradients& out, const SortedRows& sorted, void* scratch,
                     cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (!out.gp && !out.gq)
    return out.gx.data ? rotate(coefficients, gz, out.gx, /*transposed=*/true, /*overlap=*/false, stream) : cudaSuccess;
  return launch_backward<Given>(problem, coefficients, gz, saved, from_output, out, sorted, scratch, stream);
}

}  // namespace road::cuda
