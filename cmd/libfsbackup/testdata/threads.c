/* Many threads, each with its instance, and all looking at one: for sanitizers. */
#define _GNU_SOURCE
#include <pthread.h>

#include "check.h"

static const char *src, *dst, *meta, *file, *logs;
static void *shared;

static int count(const fsbackup_failure *f, void *user) {
    (void)f;
    ++*(int *)user;
    return 0;
}

static void *work(void *number) {
    char path[4096], text[128];
    BackupStatistics s;
    fsbackup_stats all;
    int failures = 0;
    void *b;
    snprintf(path, sizeof path, "%s/%d", dst, (int)(intptr_t)number);
    b = CreateBackupInst(src, path, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL && GetStatus(b) == BACKUP_INPROGRESS);
    InitLog(logs, (int)(intptr_t)number % 2);
    CHECK(ConfigureThreadPool(b, 2, 2) == 0 && ConfigureMemory(b, 1 << 20) == 0);
    CHECK(fsbackup_set_option(b, "sync", "none") == 0 && Enqueue(b, file) == 0);
    REFUSED(Enqueue(b, "relative"), "not absolute");
    CHECK(Start(b) == 0);
    while (GetStatus(b) == BACKUP_INPROGRESS) {
        GetStats(b, &s);
        GetStats(shared, &s);
        all.size = sizeof all;
        CHECK(fsbackup_get_stats(shared, &all) == 0);
        CHECK(fsbackup_wait(b, 5) >= BACKUP_COMPLETED);
    }
    CHECK(GetStatus(b) == BACKUP_COMPLETED);
    CHECK(fsbackup_failures(b, count, &failures) == 0 && failures == 0);
    CHECK(fsbackup_message(b, text, sizeof text) == 0 && fsbackup_job_id(b, text, sizeof text) == 26);
    CHECK(strlen(fsbackup_version()) > 0 && strlen(fsbackup_commit()) > 0);
    DestroyBackupInst(b);
    b = CreateBackupInst(src, path, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL && Enqueue(b, file) == 0 && Start(b) == 0 && fsbackup_cancel(b) == 0);
    CHECK(ended(b) != BACKUP_INPROGRESS); /* as it comes */
    DestroyBackupInst(b);
    return NULL;
}

/* threads SRC DST META COPY LOGS */
int main(int argc, char **argv) {
    pthread_t threads[8];
    char path[4096];
    CHECK(argc == 6);
    src = argv[1], dst = argv[2], meta = argv[3], file = argv[4], logs = argv[5];
    snprintf(path, sizeof path, "%s/shared", dst);
    shared = CreateBackupInst(src, path, meta, BACKUP_PHASE_COPY, true);
    CHECK(shared != NULL && Enqueue(shared, file) == 0 && Start(shared) == 0);
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    CHECK(ended(shared) == BACKUP_COMPLETED);
    DestroyBackupInst(shared);
    return 0;
}
