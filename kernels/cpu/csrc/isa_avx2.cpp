#define LEANKV_NS avx2
#include "kernels.inl"
