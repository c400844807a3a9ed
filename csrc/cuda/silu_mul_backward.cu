// Gradients of rotate_silu_mul, for which gate and up are computed again.
#include "cuda/backward.cuh"
#include "cuda/silu_mul.cuh"

namespace road::cuda {
namespace {

// It comes through silu(gate) * up: the pairs of a thread are those of gate and of up that make the same outputs.
struct ThroughSiluMul {
  static constexpr int kSides = 2;
  static constexpr bool kRecomputes = true;

  template <class P, class A, bool Shared>
  static __device__ __forceinline__ void load_coefs(const Params& params, Form form, int g, int adapter, int pair,
                                                    int at, int apart, PairCoefs<A, P::kPairs, Shared> (&c)[2]) {
    using Source = std::conditional_t<P::kAligned, AlignedTables, AnyTables>;
    Source::template load<P>(params, form, g, adapter, pair, at, apart, c);
  }
  template <class P, class A, class Coefs>
  static __device__ __forceinline__ void gradients(bool rotates, const typename P::Packs& g, int k,
                                                   const A (&hi)[2][P::kUnit], const A (&hj)[2][P::kUnit],
                                                   const Coefs (&c)[2], A (&gi)[2][P::kUnit], A (&gj)[2][P::kUnit]) {
    A zi[P::kUnit], zj[P::kUnit];
    P::get(g, k, zi, zj);
#pragma unroll
    for (int n = 0; n < P::kUnit; ++n) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        gi[s][n] = hi[s][n], gj[s][n] = hj[s][n];
        if (rotates)
          rotate_pair(hi[s][n], hj[s][n], c[s].r1i[k + n], c[s].r1_j(k + n), c[s].r2i[k + n], c[s].r2_j(k + n),
                      gi[s][n], gj[s][n]);
      }
      gradients_through_silu_mul<typename P::Element>(zi[n], gi[0][n], gi[1][n]);
      gradients_through_silu_mul<typename P::Element>(zj[n], gj[0][n], gj[1][n]);
    }
  }

  template <class Packs>
  static __device__ __forceinline__ Packs& gx(Packs&, Packs (&h)[2], int s) {
    return h[s];
  }

  // 8 bytes of a row a thread, of which it has three times as many as in the backward of a rotation.
  template <class T, class Vectorizes, class Use>
  static void with_instance(const Problem& problem, const Vectorizes& vectorizes, const Use& use) {
    with_pairing<T, /*AsStored=*/true>(problem, /*few=*/true, vectorizes,
                                       [&](auto pairing, auto, auto shared) { use(pairing, shared); });
  }
};

}  // namespace

int64_t silu_mul_backward_scratch(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out) {
  return scratch_of<ThroughSiluMul>(problem, gz, x, out);
}

cudaError_t rotate_silu_mul_backward(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out,
                                     const SortedRows& sorted, void* scratch, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (!out.gp && !out.gq)
    return out.gx.data ? launch_silu_mul</*Gradient=*/true>(problem, x, gz, out.gx, stream) : cudaSuccess;
  return launch_backward<ThroughSiluMul>(problem, problem, gz, x, /*from_output=*/false, out, sorted, scratch, stream);
}

}  // namespace road::cuda
