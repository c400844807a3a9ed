// Threads, as an argument: the binding passes at::parallel_for, the C++ tests a thread pool of their own.
#pragma once

#include <cstdint>

namespace road::cpu {

struct Parallel {
  using Body = void (*)(const void* context, int64_t begin, int64_t end);
  // Splits [begin, end) into ranges of at least `grain` and calls body on each, in any order, on any thread.
  void (*run)(int64_t begin, int64_t end, int64_t grain, const void* context, Body body);

  template <class F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    if (begin >= end) return;
    run(begin, end, grain, &f,
        [](const void* context, int64_t b, int64_t e) { (*static_cast<const F*>(context))(b, e); });
  }
};

// Less work than this stays on one thread: starting a second one costs about as much (8 x 4096, two threads).
constexpr int64_t kElementsPerTask = 32768;

inline int64_t rows_per_task(int64_t dim) { return dim >= kElementsPerTask ? 1 : kElementsPerTask / dim; }

}  // namespace road::cpu
