// What every processor can run: 16-byte vectors (SSE2 on x86-64, NEON on Arm).
#define ROAD_ISA isa_default
#define ROAD_ISA_NAME "default"
#define ROAD_VECTOR_BYTES 16
#include "isa_body.h"
