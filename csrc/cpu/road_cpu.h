// The CPU kernels, as a binding calls them.  Arguments are trusted; first_bad_id checks the values of the ids.
#pragma once

#include "core/problem.h"
#include "core/rms_norm.h"
#include "core/rope.h"
#include "cpu/parallel.h"

namespace road::cpu {

// The position of the first id outside -1 .. adapters - 1, or -1.  Call it before anything that reads the bank.
int64_t first_bad_id(const Problem& problem);

// z = R x for every row, or R^T x if `transposed`.  z may be x: pass-through rows then cost nothing.
void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel);

// Z = R W for a matrix whose rows are the features, which folds an adapter into the weight of its layer.  `problem` has
// one adapter; dim is the number of W's rows and rows that of its columns.  z may be w.
void merge(const Problem& problem, const Matrix& w, const Matrix& z, const Parallel& parallel);

// r1 and r2 of all adapters, contiguous [adapters, D], or [adapters, D/2] for shared forms, in problem.dtype: float32
// or float64.
void tables(const Problem& problem, void* r1, void* r2, const Parallel& parallel);

// Gradients of what `out` asks for.  `saved` holds the input x, or the output z if `from_output`.
// Bitwise the same for any number of threads.  Scratch, with gp or gq: 4 bytes a feature (8 if not shared) for every
// block of 64 to 1024 rows of an adapter that has more than one such block.
void backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
              const Parallel& parallel);

// The rotation and what follows it, rounded once.  Forms kTable and kTableHalf only; rows without an adapter are not
// rotated, the rest happens to them too.

// z [rows, I] = silu(gate) * up for [gate, up] = R x, x [rows, 2 I]; group_size divides I.  And its gradients, from x
// alone: as backward, gz having rows of I.
void rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z, const Parallel& parallel);
void rotate_silu_mul_backward(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out,
                              const Parallel& parallel);

// s = R x + residual and y = RMSNorm of s, before s is rounded.  y may be x, and s the residual.
void rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                         const Rows& y, const Rows& s, const Parallel& parallel);

// The gradient of s, which is that of R x and of the residual.  out may be any of them.
// Of `problem`, rows, dim and dtype are read.
void add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s, const RmsNorm& norm,
                           const Rows& out, const Parallel& parallel);

// R on rows of heads, group_size dividing head_dim, then RoPE on the first of them.  z may be qkv.
void rotate_rope(const Problem& problem, const Rows& qkv, const Rope& rope, const Rows& z, const Parallel& parallel);
// The place of the first position outside the cache, or -1.  Call it before rotate_rope.
int64_t first_bad_position(const Rope& rope);

// A 2x2 block, of an adapter in use, that a backward from the output could not invert.
struct Singular {
  int64_t adapter = -1;  // -1: there is none
  int64_t feature = 0;   // the pair is (feature, feature + group_size / 2)
  double determinant = 0;
};
Singular find_singular(const Problem& problem);

// The instruction set in use: "default", "avx2", "avx512" or "avx512_bf16".
const char* isa();

}  // namespace road::cpu
