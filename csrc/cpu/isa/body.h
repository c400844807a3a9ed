// The body of every instruction set's file in this folder: exports the loops compiled for it.  No include guard.
#include "cpu/isa/add_rms_norm_row.h"
#include "cpu/isa/backward_row.h"
#include "cpu/isa/merge_row.h"
#include "cpu/isa/rope_row.h"
#include "cpu/isa/rotate_row.h"
#include "cpu/isa/silu_mul_row.h"
#include "cpu/isa/sincos.h"

namespace road {
namespace ROAD_ISA {

template <class T, class A>
void widen(const void* src, int64_t n, A* dst) {
  const T* p = static_cast<const T*>(src);
  for_pairs<Acc<T>>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    store<A, L>(dst + k, convert<A, L>(load<T, L>(p + k)));
  });
}

template <class T>
const cpu::Kernels& kernels_of() {
  using A = Acc<T>;
  static const cpu::Kernels set{ROAD_ISA_NAME,
                                &choose_rotate<T>,
                                &choose_rotate_converting<T, A>,
                                &choose_rotate_converting<A, T>,
                                &choose_rope_head<T>,
                                &choose_backward<T>,
                                &merge_rows<T>,
                                &choose_silu_mul<T>,
                                &choose_silu_mul_backward<T>,
                                &choose_add_rms_norm<T>,
                                &add_rms_norm_backward_row<T>,
                                &widen<T, float>,
                                &widen<T, double>,
                                &sincos};
  return set;
}

}  // namespace ROAD_ISA

namespace cpu::ROAD_ISA {

const Kernels& kernels(DType dtype) {
#if defined(ROAD_ISA_OF_OTHER_TYPES)
  if (dtype != DType::kBFloat16) return ROAD_ISA_OF_OTHER_TYPES::kernels(dtype);
  return road::ROAD_ISA::kernels_of<BFloat16>();
#else
  return *with_dtype(dtype, [](auto t) { return &road::ROAD_ISA::kernels_of<decltype(t)>(); });
#endif
}

}  // namespace cpu::ROAD_ISA
}  // namespace road
