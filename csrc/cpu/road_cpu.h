// The CPU backend: everything that a binding calls.  Inputs are trusted except for the ids, which first_bad_id checks.
#pragma once

#include "parallel.h"
#include "problem.h"

namespace road::cpu {

// The position of the first id outside -1 .. adapters - 1, or -1.  Call it before anything that reads the bank.
int64_t first_bad_id(const Problem& problem);

// z = R x for every row, or R^T x if `transposed`.  z may be x: rows without an adapter then cost nothing.
void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, const Parallel& parallel);

// Z = R W: `problem` of one adapter, with dim the number of W's rows and rows that of its columns.  z may be w.
void mix_rows(const Problem& problem, const Matrix& w, const Matrix& z, const Parallel& parallel);

// Gradients of what `out` asks for.  `saved` holds the input x, or the output z if `from_output`.
// Bitwise the same for any number of threads.  Scratch: with gp or gq, 4 (8 if not shared) bytes per feature for every
// 64 to 1024 rows of an adapter, and for each adapter with more than one such block of rows.
void backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
              const Parallel& parallel);

// A 2x2 block, of an adapter in use, that no backward from the output can invert.
struct Singular {
  int64_t adapter = -1;  // -1: there is none
  int64_t feature = 0;   // the pair is (feature, feature + group_size / 2)
  double determinant = 0;
};
Singular find_singular(const Problem& problem);

// The instruction set in use: "default", "avx2", "avx512" or "avx512_bf16".
const char* isa();

}  // namespace road::cpu
