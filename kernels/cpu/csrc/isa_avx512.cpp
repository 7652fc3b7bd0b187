#define LEANKV_NS avx512
#include "kernels.inl"
