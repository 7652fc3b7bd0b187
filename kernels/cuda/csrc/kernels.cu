// The kernels of the shapes that are shipped; kernels/cuda/shapes.py lists them and -DLEANKV_SHAPES carries the list.
#include "attend.cuh"

#define X(...) template __global__ void leankv::cuda::attend_committed<leankv::cuda::Shape<__VA_ARGS__>>(const leankv::cuda::AttendArgs);
LEANKV_SHAPES(X)
