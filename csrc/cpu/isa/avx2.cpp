// The loops for AVX2.
#include "cpu/isa/target.h"
#if defined(ROAD_X86_DISPATCH)
ROAD_TARGET("avx2,fma,f16c,bmi,bmi2")
#define ROAD_ISA isa_avx2
#define ROAD_ISA_NAME "avx2"
#define ROAD_VECTOR_BYTES 32
#include "cpu/isa/body.h"
ROAD_TARGET_END
#endif
