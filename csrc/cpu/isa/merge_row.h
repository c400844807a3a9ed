// Rows i and j of a matrix whose rows are the features, times one block, for one instruction set.
#pragma once

#include "cpu/isa/lanes.h"
#include "cpu/kernels.h"

namespace road {
namespace ROAD_ISA {

template <class T>
void merge_rows(const void* wi_, const void* wj_, void* zi_, void* zj_, int64_t n, const void* c_) {
  using A = Acc<T>;
  const T *wi = static_cast<const T*>(wi_), *wj = static_cast<const T*>(wj_);
  T *zi = static_cast<T*>(zi_), *zj = static_cast<T*>(zj_);
  A c[4];  // a copy, which the compiler knows that a store to z does not change
  std::memcpy(c, c_, sizeof c);
  for_pairs<A>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    const V r1i = V{} + c[0], r1j = V{} + c[1], r2i = V{} + c[2], r2j = V{} + c[3];
    V i, j;
    rotate_pair<V>(load<T, L>(wi + k), load<T, L>(wj + k), r1i, r1j, r2i, r2j, i, j);
    store<T, L>(zi + k, i);
    store<T, L>(zj + k, j);
  });
}

}  // namespace ROAD_ISA
}  // namespace road
