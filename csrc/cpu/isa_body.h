// The body of every isa_*.cpp: exports the loops compiled for this instruction set.  No include guard.
#include "rows.h"

namespace road::cpu::ROAD_ISA {

const Kernels& kernels() {
  static const Kernels set{ROAD_ISA_NAME, &road::ROAD_ISA::choose_rotate, &road::ROAD_ISA::choose_backward,
                           &road::ROAD_ISA::choose_mix_rows, &road::ROAD_ISA::widen<float>,
                           &road::ROAD_ISA::widen<double>, &road::ROAD_ISA::sincos};
  return set;
}

}  // namespace road::cpu::ROAD_ISA
