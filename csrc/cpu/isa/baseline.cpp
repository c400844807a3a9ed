// The loops for every processor: 16-byte vectors (SSE2 on x86-64, NEON on Arm).
#define ROAD_ISA isa_baseline
#define ROAD_ISA_NAME "default"
#define ROAD_VECTOR_BYTES 16
#include "cpu/isa/body.h"
