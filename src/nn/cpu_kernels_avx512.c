/* The library of cpu_kernels.c for AVX-512 with VNNI: the same source, with other options of the
   compiler (see setup.py). */

#include "cpu_kernels.c"
