/* What the C test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <fsbackup.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(holds)                                                                              \
    do {                                                                                          \
        if (!(holds)) {                                                                           \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #holds, fsbackup_last_error()); \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* The call fails, and the last error has this text. */
#define REFUSED(call, text)                                                                       \
    do {                                                                                          \
        CHECK((call) == -1);                                                                      \
        CHECK(strstr(fsbackup_last_error(), text) != NULL);                                       \
    } while (0)

static inline void pause_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static inline int64_t clock_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Polls as the interface asks for. */
static inline int ended(void *backup) {
    int status;
    while ((status = GetStatus(backup)) == BACKUP_INPROGRESS) pause_ms(5);
    return status;
}

#endif
