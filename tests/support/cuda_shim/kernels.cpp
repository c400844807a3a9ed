// The CUDA kernels and their launchers, word for word, as host code.
#include "cuda/backward.cu"
#include "cuda/merge.cu"
#include "cuda/rotate.cu"
#include "cuda/singular.cu"
#include "cuda/sort_rows.cu"
#include "cuda/tables.cu"
