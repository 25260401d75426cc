// Sets every number of a stretch of memory to one value: out[i] = value for i in 0..count.
//
// Grid: any number of blocks of any size; a thread takes every (blocks * threads)-th number, so that one grid
// fills any count. Each number is written once, by one thread: no order matters.
extern "C" __global__ void fill(float* out, unsigned long long count, float value) {
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        out[i] = value;
    }
}
