// The CUDA kernels and their launchers, word for word, as host code.
#include "backward.cu"
#include "mix_rows.cu"
#include "order.cu"
#include "rotate.cu"
#include "singular.cu"
