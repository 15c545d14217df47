/* The barrier of the engine's teams, as an orphaned OpenMP directive (Cython has no spelling for it). */
#ifndef TOOLKIT_THREADS_H
#define TOOLKIT_THREADS_H

#include <time.h>

static inline void team_barrier(void) {
#pragma omp barrier
}

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
