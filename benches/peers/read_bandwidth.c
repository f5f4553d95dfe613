/* Prints the bytes a second that THREADS threads read together from a buffer of BYTES:
 * the best of twelve passes, each begun and ended together. Decoding one stream reads
 * every weight once a token, so weights / this rate is its least time.
 *
 *     gcc -O3 -march=native -pthread read_bandwidth.c && ./a.out BYTES THREADS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PASSES = 12, LINE = 64, STRIDE = 4 * LINE, AHEAD = 16 * 1024 };

typedef uint64_t vector __attribute__((vector_size(LINE)));

static char *buffer;
static size_t share;
static pthread_barrier_t barrier;
static volatile uint64_t sink;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

static void *read_share(void *index) {
    const char *start = buffer + (size_t)index * share;
    for (int pass = 0; pass < PASSES; pass++) {
        vector sums[4] = {{0}};
        pthread_barrier_wait(&barrier);
        for (size_t at = 0; at < share; at += STRIDE)
            for (int line = 0; line < 4; line++) {
                /* Past the end it is a hint about memory that is never read. */
                __builtin_prefetch(start + at + AHEAD + line * LINE);
                sums[line] ^= *(const vector *)(start + at + line * LINE);
            }
        vector sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
        sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s BYTES THREADS\n", argv[0]);
        return 2;
    }
    size_t threads = strtoul(argv[2], NULL, 10);
    if (threads < 1 || threads > 256) return 2;
    share = strtoul(argv[1], NULL, 10) / threads / STRIDE * STRIDE;
    size_t size = share * threads;
    buffer = share ? aligned_alloc(STRIDE, size) : NULL;
    if (!buffer) return 1;
    memset(buffer, 1, size);
    pthread_barrier_init(&barrier, NULL, threads + 1);
    pthread_t ids[256];
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, read_share, (void *)i)) return 1;
    double best = 1e9;
    for (int pass = 0; pass < PASSES; pass++) {
        double start = now();
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        double took = now() - start;
        if (took < best) best = took;
    }
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    printf("%.0f\n", size / best);
    return 0;
}
