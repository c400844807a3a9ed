// Choices that only measurements on a device can settle.  Each can be set when compiling: nvcc reads
// NVCC_APPEND_FLAGS=-DROAD_FORWARD_WAVES=2 from the environment, and benchmarks/gpu_tune.py compares several builds.
// None changes a result, apart from the order of sums.
#pragma once

// Threads of a block, in all kernels but those that sort ids and reduce partial sums.
#ifndef ROAD_THREADS
#define ROAD_THREADS 256
#endif
// Threads that must fit on a multiprocessor, which limits their registers: 80 each where both rows of a pair share
// their coefficients, 128 where each has its own.
#ifndef ROAD_RESIDENT_SHARED
#define ROAD_RESIDENT_SHARED 768
#endif
#ifndef ROAD_RESIDENT_OWN
#define ROAD_RESIDENT_OWN 512
#endif
// Loads of a thread in flight at a time, in bytes.  An H200's memory moves 29 KB a multiprocessor in its latency
// (4.8 TB/s x 0.8 us / 132), half to two thirds of them loads; 768 threads with 64 bytes each have 48 KB in flight.
#ifndef ROAD_BYTES_IN_FLIGHT
#define ROAD_BYTES_IN_FLIGHT 64
#endif
// Blocks of a launch, in multiples of what the device holds at once.  Forward: several, to balance the load; each still
// walks enough rows to amortise its coefficients.  Backward: one, as every block writes sums that the reduction reads.
#ifndef ROAD_FORWARD_WAVES
#define ROAD_FORWARD_WAVES 4
#endif
#ifndef ROAD_BACKWARD_WAVES
#define ROAD_BACKWARD_WAVES 1
#endif

namespace road::cuda {

constexpr int kThreads = ROAD_THREADS, kBytesInFlight = ROAD_BYTES_IN_FLIGHT;
constexpr int kForwardWaves = ROAD_FORWARD_WAVES, kBackwardWaves = ROAD_BACKWARD_WAVES;
static_assert(kThreads % 32 == 0 && kThreads >= 128 && kThreads <= 1024, "make_plan needs whole warps of 128 to 1024");
static_assert(kBytesInFlight >= 32, "a thread loads up to 32 bytes of a row at once");

// Rows that a thread loads at once, of so many tensors and bytes of each; narrow loads count as 16 bytes.
template <int Bytes, int Tensors>
constexpr int kLoadedBytes = Tensors * (Bytes < 16 ? 16 : Bytes);
template <int Bytes, int Tensors>
constexpr int kRowsAhead =
    kBytesInFlight > kLoadedBytes<Bytes, Tensors> ? kBytesInFlight / kLoadedBytes<Bytes, Tensors> : 1;

template <bool Shared>
constexpr int kResidentBlocks = (Shared ? ROAD_RESIDENT_SHARED : ROAD_RESIDENT_OWN) / kThreads;

}  // namespace road::cuda
