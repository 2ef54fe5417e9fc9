/* The library of cpu_kernels.c for Arm processors with dot products of int8: the same source, with
   other options of the compiler (see setup.py). */

#include "cpu_kernels.c"
