/* What api.c and the Go side share. Callers never see it. */
#ifndef FSBACKUP_BRIDGE_H
#define FSBACKUP_BRIDGE_H

#include "fsbackup.h"

/* Size of the buffers that take the text of an error. */
#define BRIDGE_ERROR 2048

/* How to reach a cluster, and where else files may lie, from the environment of the caller; NULL = not set. */
typedef struct bridge_cluster {
    const char *url, *creds, *nkey, *ca, *cert, *key, *pool, *tmpdir;
} bridge_cluster;

/* A page of failures. next is "" on the last one, and before the first. */
typedef struct bridge_page {
    char next[64];
    size_t count;
    fsbackup_failure *items; /* malloc, as their strings */
} bridge_page;

/* The Go runtime is up: put back what it has changed. */
void bridge_runtime_up(void);
/* Removes this directory when the process exits; NULL = it is gone already. */
void bridge_remove_at_exit(const char *dir);

#endif
