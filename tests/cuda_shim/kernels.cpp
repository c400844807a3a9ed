// The CUDA kernels and their launchers, word for word, as host code.
#include "backward.cu"
#include "rotate.cu"
