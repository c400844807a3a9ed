// Choices that only measurements on a device can settle.  Each can be set when compiling: nvcc reads
// NVCC_APPEND_FLAGS=-DROAD_THREADS=256 from the environment, and benchmarks/gpu_tune.py compares several builds.  None
// changes a result, apart from the order of sums.  The figures of an H100 and of an H200:
// benchmarks/results/*/tuning.txt.
#pragma once

#include <cstdint>

// Threads of a block, in all kernels but those that sum.  128 were 0.5 to 1.5 % faster than 256 on an H200.
#ifndef ROAD_THREADS
#define ROAD_THREADS 128
#endif
// Threads of the forward that must fit on a multiprocessor, which limits their registers: 96, and 128 where
// coefficients are made from angles of each row's own; without a limit ptxas spills a few in the widest instances to
// fit more threads.  40 with one row from tables, because in a mixed batch only other threads hide that an id has to
// arrive before its tables are asked for: 64 requests took 1.013 of one adapter so on an H200, and 1.027 with 44; 32
// spill, and take 1.35.  64 in rotate_silu_mul: 161 us for 8192 rows of 2 x 14336 without adapters and 183 with, where
// 72 took 162 and 189, 96 171 and 208; 48 spill.  Not measured yet: 896 (72 registers) in rotate_rope where cos and sin
// are of the rows' dtype, and 48 registers in rotate_add_rms_norm with 16-bit rows; on 8.0, these spill.
#ifndef ROAD_RESIDENT
#define ROAD_RESIDENT 640
#endif
#ifndef ROAD_RESIDENT_OWN
#define ROAD_RESIDENT_OWN 512
#endif
#ifndef ROAD_RESIDENT_TABLES
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900  // where cache hints take registers, and 40 spill
#define ROAD_RESIDENT_TABLES 1280
#else
#define ROAD_RESIDENT_TABLES 1536
#endif
#endif
#ifndef ROAD_RESIDENT_SILU
#define ROAD_RESIDENT_SILU 1024
#endif
#ifndef ROAD_RESIDENT_ROPE
#define ROAD_RESIDENT_ROPE 896
#endif
#ifndef ROAD_NORM_REGISTERS
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define ROAD_NORM_REGISTERS 64
#else
#define ROAD_NORM_REGISTERS 48
#endif
#endif
// Rows of a thread of the forward: with tables that both rows of a pair share, also where features of a pair are side
// by side (group_size 2: half as many bytes of a row), with tables of their own, from angles that they share, from
// their own.  More rows share what a thread does once.  Percent of the fastest copy on an H200, whose memory is faster
// beside its arithmetic than an H100's:
//   rows               1     2     4
//   shared tables  100.2  98    98     (97.5 to 98.9; eight 92 to 94)
//   side by side    80.2  98.0     -
//   own tables      93.6  97.1  98.1   (side by side 79.8, 92.8, 99.2)
//   shared angles      -  89.7  97.8   (H100: two 99.4, one 83.5)
// From angles of their own in road_4, whose sines take longer than its rows, four reach 86 on an H100, and two took
// half as long again: see ROAD_TABLE_BYTES.
#ifndef ROAD_ROWS_TABLES_SHARED
#define ROAD_ROWS_TABLES_SHARED 1
#endif
#ifndef ROAD_ROWS_TABLES_ADJACENT
#define ROAD_ROWS_TABLES_ADJACENT 2
#endif
#ifndef ROAD_ROWS_TABLES_OWN
#define ROAD_ROWS_TABLES_OWN 4
#endif
#ifndef ROAD_ROWS_ANGLES_SHARED
#define ROAD_ROWS_ANGLES_SHARED 4
#endif
#ifndef ROAD_ROWS_ANGLES_OWN
#define ROAD_ROWS_ANGLES_OWN 4
#endif
// Up to so many bytes of x, a thread of the forward takes 8 bytes of each row instead of 16, and one row: a decode step
// is bound by latency.  1 to 256 bfloat16 rows of 4096 with tables were 4 to 9 % faster so on an H200; 1024 rows, 8 MB,
// were 1 % slower on an H100.
#ifndef ROAD_FEW_BYTES
#define ROAD_FEW_BYTES (4 << 20)
#endif
#ifndef ROAD_FEW_BYTES_ANGLES
#define ROAD_FEW_BYTES_ANGLES (2 << 20)
#endif
// The backward: threads of a block, how many of them are side by side in a row (in as many rows as that leaves), rows
// that each loads at once and rows of a block (where the rows of a pair share their coefficients, and where they have
// their own: 8 bytes of a row a thread instead of 16), and blocks that must fit on a multiprocessor.  64 wide, four
// rows side by side, two at once, 64 rows a block reach 99.4 % of the fastest copy on an H200 before the reduction; 128
// wide 97.7, 256 wide 96.3; 16 rows a block 94 to 97, four 86; registers for three or four blocks with two rows at once
// lose 4 to 10 %.  With the reduction, on an H100: 92.2 %, half as wide 93.3 (parameters only: 91.8 and 90.9); own
// coefficients in 16 bytes and one row at once 80 to 83 %, in 8 bytes and four rows 86; 128 rows a block 2 to 5 %
// more than 64.  On an H200 32 rows a block took 6 % longer than 64; shorter blocks at the end of the rows, so that
// multiprocessors end together, 0 to 2 % (half as long) and 3 to 8 % (a quarter).
#ifndef ROAD_BACKWARD_THREADS
#define ROAD_BACKWARD_THREADS 256
#endif
#ifndef ROAD_COLUMNS
#define ROAD_COLUMNS 64
#endif
#ifndef ROAD_ROWS_AT_ONCE
#define ROAD_ROWS_AT_ONCE 2
#endif
#ifndef ROAD_ROWS_AT_ONCE_OWN
#define ROAD_ROWS_AT_ONCE_OWN 4
#endif
#ifndef ROAD_BLOCK_ROWS
#define ROAD_BLOCK_ROWS 64
#endif
#ifndef ROAD_BLOCK_ROWS_OWN
#define ROAD_BLOCK_ROWS_OWN 128
#endif
#ifndef ROAD_BACKWARD_BLOCKS
#define ROAD_BACKWARD_BLOCKS 2
#endif

// And up to so many bytes, it prefetches what it is going to read while the kernel before it still runs: on an H100,
// 1.29 us instead of 1.69 for one row of 4096 with tables, 1.86 instead of 2.50 for 64; 1024 rows were 16 % slower.
#ifndef ROAD_PREFETCH_BYTES
#define ROAD_PREFETCH_BYTES (2 << 20)
#endif
// From so many bytes of x on, angles of each row's own are made into tables once, by a kernel before: 2 us.  In every
// block they took 15 us of 90 in road_4, with 16384 bfloat16 rows of 4096 on an H100, and 8 of 64 in road_2 on an H200.
#ifndef ROAD_TABLE_BYTES
#define ROAD_TABLE_BYTES (16 << 20)
#endif
// From so many bytes of tables on, rows with an id each leave the L2 cache before them, beyond what load_kept does.  16
// MB, 1000 adapters at random, took 1.20 of one adapter so on an H200 instead of 1.32; 8 MB gained nothing.
#ifndef ROAD_STREAM_BYTES
#define ROAD_STREAM_BYTES (12 << 20)
#endif

namespace road::cuda {

constexpr int kThreads = ROAD_THREADS;
static_assert(kThreads % 32 == 0 && kThreads >= 32 && kThreads <= 1024,
              "whole warps, and at most what a block can have");

constexpr int kBackwardThreads = ROAD_BACKWARD_THREADS, kBackwardBlocks = ROAD_BACKWARD_BLOCKS;
constexpr int kColumns = ROAD_COLUMNS;
template <bool Shared>
constexpr int kBlockRows = Shared ? ROAD_BLOCK_ROWS : ROAD_BLOCK_ROWS_OWN;
template <bool Shared>
constexpr int kRowsAtOnce = Shared ? ROAD_ROWS_AT_ONCE : ROAD_ROWS_AT_ONCE_OWN;
static_assert(kBackwardThreads <= 1024 && kColumns <= kBackwardThreads, "what a block can have");
static_assert(
    (kColumns & (kColumns - 1)) == 0 && (kBackwardThreads & (kBackwardThreads - 1)) == 0 &&
        (kBlockRows<true> & (kBlockRows<true> - 1)) == 0 && (kBlockRows<false> & (kBlockRows<false> - 1)) == 0 &&
        (kRowsAtOnce<true> & (kRowsAtOnce<true> - 1)) == 0 && (kRowsAtOnce<false> & (kRowsAtOnce<false> - 1)) == 0,
    "powers of two: sums are added pairwise, and a block's rows are multiples of those side by side and at once");

constexpr int64_t kFewBytes = ROAD_FEW_BYTES, kFewBytesAngles = ROAD_FEW_BYTES_ANGLES,
                  kPrefetchBytes = ROAD_PREFETCH_BYTES, kTableBytes = ROAD_TABLE_BYTES,
                  kStreamBytes = ROAD_STREAM_BYTES;

}  // namespace road::cuda
