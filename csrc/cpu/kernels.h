// The inner loops, as function pointers: one set per instruction set (isa/), chosen once at run time, and stored type.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/isa/target.h"

namespace road::cpu {

// Coefficients of one adapter in the arithmetic type (double for double, float otherwise).
// shared: [D/2] in pair order, both rows of a pair use them.  Otherwise [D], one per feature.
struct Coefs {
  const void* r1 = nullptr;
  const void* r2 = nullptr;
  bool shared = false;
};

// Which coefficients a row has: none (no adapter), Coefs that are shared, or not.
enum class Has { kNone, kShared, kFull };

// z = R x, or R^T x.  z may be x.
using RotateRow = void (*)(const void* x, void* z, const Coefs& coefs, int64_t dim, int64_t half);

// gx = R^T gz (if gx is not null) and moments += gz h^T.  `moments` holds arrays of [D/2] sums in pair order:
// dot, cross when the coefficients are shared (SharedMoments), ii, ij, ji, jj otherwise (PairMoments).
using BackwardRow = void (*)(const void* gz, const void* h, void* gx, const Coefs& coefs, int64_t dim, int64_t half,
                             void* moments);

// For a matrix whose rows are the features: rows i and j of n elements, and one 2x2 block for all of their columns,
// c = {r1_i, r1_j, r2_i, r2_j} in the arithmetic type.  zi and zj may be wi and wj.
using MergeRows = void (*)(const void* wi, const void* wj, void* zi, void* zj, int64_t n, const void* c);

// RoPE of a rotated head of dim features, where it pairs features dim / 2 apart and groups lie within either half.
// cos_sin: dim / 2 of cos, and of sin, in the arithmetic type.  z may be x.
using RopeHead = void (*)(const void* x, void* z, const Coefs& coefs, int64_t dim, int64_t half, const void* cos_sin);

// s = R x + residual, y = its RMSNorm; y may be x and s the residual.  `weight` and `scratch`: [D] in the arithmetic
// type.
using AddRmsNormRow = void (*)(const void* x, const void* residual, void* y, void* s, const Coefs& coefs, int64_t dim,
                               int64_t half, const void* weight, double eps, void* scratch);

// The gradient of s; `weight` as above.
using AddRmsNormBackwardRow = void (*)(const void* gy, const void* gs, const void* s, void* out, int64_t dim,
                                       const void* weight, double eps);

struct Kernels {
  const char* isa;
  RotateRow (*rotate)(bool shared, bool adjacent, bool transposed);
  // z in the arithmetic type; x in the arithmetic type.
  RotateRow (*rotate_widening)(Has has, bool adjacent);
  RotateRow (*rotate_narrowing)(Has has, bool adjacent);
  RopeHead (*rope_head)(Has has, bool adjacent);
  BackwardRow (*backward)(bool shared, bool adjacent, bool need_gx);
  MergeRows merge;
  // Of rows of dim = 2 I features; z, or gz, has I.
  RotateRow (*silu_mul)(Has has, bool adjacent);
  BackwardRow (*silu_mul_backward)(Has has, bool adjacent);
  AddRmsNormRow (*add_rms_norm)(Has has, bool adjacent);
  AddRmsNormBackwardRow add_rms_norm_backward;
  // dst[0..n) = src[0..n) in the arithmetic type.
  void (*widen_float)(const void* src, int64_t n, float* dst);
  void (*widen_double)(const void* src, int64_t n, double* dst);
  // Of float32, whatever the stored type: sin and cos of n angles, correctly rounded but for about one value in ten
  // thousand below 2^20, and libm's beyond.
  void (*sincos_float)(const float* angle, int64_t n, float* sin, float* cos);
};

// The best set for this processor.  ROAD_KERNELS_ISA=default|avx2|avx512|avx512_bf16 asks for a lower one (for tests).
const Kernels& kernels(DType dtype);

namespace isa_baseline {
const Kernels& kernels(DType dtype);
}
#if defined(ROAD_X86_DISPATCH)
namespace isa_avx2 {
const Kernels& kernels(DType dtype);
}
namespace isa_avx512 {
const Kernels& kernels(DType dtype);
}
#endif
#if defined(ROAD_X86_DISPATCH_BFLOAT16)
namespace isa_avx512_bf16 {
const Kernels& kernels(DType dtype);
}
#endif

}  // namespace road::cpu
