// Sets every number of a stretch of memory to one value: out[i] = value for i in 0..count.
//
// Grid: any number of blocks of any size; a thread takes every (blocks * threads)-th number, so that one grid
// fills any count. Each number is written once, by one thread: no order matters.
#include "device.cuh"

KERNEL(fill, float* out, u64 count, float value) {
    for (u64 i = first_number(); i < count; i += number_stride()) out[i] = value;
}
