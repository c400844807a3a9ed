// The body of every instruction set's file in this folder: exports the loops compiled for it.  No include guard.
#include "cpu/isa/add_rms_norm_row.h"
#include "cpu/isa/backward_row.h"
#include "cpu/isa/merge_row.h"
#include "cpu/isa/rotate_row.h"
#include "cpu/isa/silu_mul_row.h"
#include "cpu/isa/sincos.h"

namespace road {
namespace ROAD_ISA {

template <class A>
void widen(const void* src, DType dtype, int64_t n, A* dst) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    const T* p = static_cast<const T*>(src);
    for_pairs<Acc<T>>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
      constexpr int L = decltype(lanes)::value;
      store<A, L>(dst + k, convert<A, L>(load<T, L>(p + k)));
    });
  });
}

}  // namespace ROAD_ISA

namespace cpu::ROAD_ISA {

const Kernels& kernels() {
  namespace isa = road::ROAD_ISA;
  static const Kernels set{ROAD_ISA_NAME,
                           &isa::choose_rotate,
                           &isa::choose_rotate_widening,
                           &isa::choose_rotate_narrowing,
                           &isa::choose_backward,
                           &isa::choose_merge,
                           &isa::choose_silu_mul,
                           &isa::choose_silu_mul_backward,
                           &isa::choose_add_rms_norm,
                           &isa::choose_add_rms_norm_backward,
                           &isa::widen<float>,
                           &isa::widen<double>,
                           &isa::sincos};
  return set;
}

}  // namespace cpu::ROAD_ISA
}  // namespace road
