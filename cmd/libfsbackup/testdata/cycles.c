/* 10,000 instances that are never started, and some that are: nothing grows. */
#define _GNU_SOURCE
#include <dirent.h>
#include <malloc.h>

#include "check.h"

static long pages(void) {
    long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f != NULL && fscanf(f, "%ld %ld", &size, &resident) == 2);
    fclose(f);
    return resident;
}

static int entries(const char *dir) {
    int n = 0;
    DIR *d = opendir(dir);
    CHECK(d != NULL);
    while (readdir(d) != NULL) n++;
    closedir(d);
    return n;
}

static const char *src, *dst, *meta, *file;

static void cycle(int start) {
    BackupStatistics s;
    void *b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL && ConfigureThreadPool(b, 2, 2) == 0 && ConfigureMemory(b, 1 << 20) == 0 && Enqueue(b, file) == 0);
    CHECK(CreateBackupInst(src, dst, NULL, BACKUP_PHASE_COPY, true) == NULL);
    if (start) {
        CHECK(Start(b) == 0 && fsbackup_wait(b, -1) == BACKUP_COMPLETED);
        CHECK(fsbackup_message(b, NULL, 0) == 0);
    }
    GetStats(b, &s);
    CHECK(start == (s.noOfFilesCopied > 0));
    DestroyBackupInst(b);
}

static void cycles(const char *what, int n, int start) {
    int i, fds, threads;
    long before, after;
    size_t heap;
    struct mallinfo2 m;
    for (i = 0; i < n / 5; i++) cycle(start); /* buffers and caches fill */
    fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    before = pages();
    m = mallinfo2();
    heap = m.uordblks;
    for (i = 0; i < n; i++) cycle(start);
    after = pages();
    m = mallinfo2();
    printf("%s: %d cycles, resident %+ld KiB, C heap %+ld bytes, descriptors %d to %d, threads %d to %d\n", what, n,
           (after - before) * (sysconf(_SC_PAGESIZE) / 1024), (long)(m.uordblks - heap), fds, entries("/proc/self/fd"), threads,
           entries("/proc/self/task"));
    fflush(stdout);
    /* The runtime's poller, and the lock on the library's directory. */
    if (entries("/proc/self/fd") > fds + 3) CHECK(system("ls -l /proc/$PPID/fd") < 0);
    CHECK(entries("/proc/self/task") <= threads + 8); /* the runtime's pool */
    CHECK((long)(m.uordblks - heap) < 16 * 1024);
    if (n < 100) return; /* too few to tell growth from buffers that fill */
    CHECK((after - before) * sysconf(_SC_PAGESIZE) < 12L << 20); /* a leak of 1 KiB a cycle is more than that */
}

/* cycles SRC DST META COPY IDLE STARTED */
int main(int argc, char **argv) {
    CHECK(argc == 7);
    src = argv[1], dst = argv[2], meta = argv[3], file = argv[4];
    if (atoi(argv[5]) > 0) cycles("never started", atoi(argv[5]), 0);
    if (atoi(argv[6]) > 0) cycles("started", atoi(argv[6]), 1);
    return 0;
}
