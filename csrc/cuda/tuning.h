// What only measurements on a device can settle.  Each may be set when compiling, to compare: nvcc takes
// NVCC_APPEND_FLAGS=-DROAD_FORWARD_WAVES=2 from the environment, and benchmarks/gpu_tune.py does so for several.
// None changes a result but for the order of sums.
#pragma once

// Threads of a block, of all kernels but the small ones that put ids in order and add up sums.
#ifndef ROAD_THREADS
#define ROAD_THREADS 256
#endif
// Threads that a multiprocessor must be able to hold, which caps their registers: where the rows of a pair share their
// coefficients, 80 each, and where they have their own, 128.
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
// Blocks of a launch, in multiples of what the device holds at once.  Forward: blocks that end early make room for
// others, and each still walks enough rows to pay for its coefficients.  Backward: every block writes sums that the
// reduction reads again.
#ifndef ROAD_FORWARD_WAVES
#define ROAD_FORWARD_WAVES 4
#endif
#ifndef ROAD_BACKWARD_WAVES
#define ROAD_BACKWARD_WAVES 1
#endif

namespace road::cuda {

constexpr int kThreads = ROAD_THREADS, kBytesInFlight = ROAD_BYTES_IN_FLIGHT;
constexpr int kForwardWaves = ROAD_FORWARD_WAVES, kBackwardWaves = ROAD_BACKWARD_WAVES;
static_assert(kThreads % 32 == 0 && kThreads >= 128 && kThreads <= 1024, "what plan.h deals out");
static_assert(kBytesInFlight >= 32, "the widest row of a thread");

// Rows that a thread loads at once, of so many tensors and bytes of each; narrow loads count as 16 bytes.
template <int Bytes, int Tensors>
constexpr int kLoadedBytes = Tensors * (Bytes < 16 ? 16 : Bytes);
template <int Bytes, int Tensors>
constexpr int kRowsAhead = kBytesInFlight > kLoadedBytes<Bytes, Tensors> ? kBytesInFlight / kLoadedBytes<Bytes, Tensors> : 1;

template <bool Shared>
constexpr int kResidentBlocks = (Shared ? ROAD_RESIDENT_SHARED : ROAD_RESIDENT_OWN) / kThreads;

}  // namespace road::cuda
