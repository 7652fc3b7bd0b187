#define LEANKV_NS portable
#include "kernels.inl"
