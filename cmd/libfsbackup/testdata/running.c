/* Instances while they run: many threads, two at once, cancel, destroy. */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

static const char *src, *meta;
static char **files;
static int count;

static void *make(const char *dst) {
    int i;
    void *b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL);
    for (i = 0; i < count; i++) CHECK(Enqueue(b, files[i]) == 0);
    return b;
}

/* Waits until the work has got somewhere and is not done. */
static void until_running(void *b) {
    BackupStatistics s;
    do {
        GetStats(b, &s);
        pause_ms(1);
    } while (GetStatus(b) == BACKUP_INPROGRESS && s.noOfFilesCopied == 0);
    CHECK(GetStatus(b) == BACKUP_INPROGRESS);
}

static atomic_int stop;
static atomic_long reads;

static void *reader(void *backup) {
    BackupStatistics s, last;
    memset(&last, 0, sizeof last);
    while (!stop) {
        fsbackup_stats all;
        char text[64];
        int status = GetStatus(backup);
        CHECK(status == BACKUP_COMPLETED || status == BACKUP_INPROGRESS);
        GetStats(backup, &s);
        CHECK(s.noOfFilesCopied >= last.noOfFilesCopied && s.noOfFilesCopied <= s.noOfFilesToBackup);
        CHECK(status != BACKUP_COMPLETED || s.noOfFilesCopied == s.noOfFilesToBackup);
        last = s;
        all.size = sizeof all;
        CHECK(fsbackup_get_stats(backup, &all) == 0);
        CHECK(fsbackup_message(backup, text, sizeof text) >= 0);
        reads++;
        pause_ms(1);
    }
    return NULL;
}

/* Two instances with their own settings, each watched by eight threads. */
static void two_at_once(const char *one, const char *two) {
    pthread_t threads[16];
    BackupStatistics a, b;
    int i;
    void *x = make(one), *y = make(two);
    CHECK(ConfigureThreadPool(x, 1, 1) == 0 && ConfigureMemory(x, 4096) == 0);
    CHECK(ConfigureThreadPool(y, 16, 16) == 0 && ConfigureMemory(y, 8 << 20) == 0);
    CHECK(Start(x) == 0 && Start(y) == 0);
    for (i = 0; i < 16; i++) CHECK(pthread_create(&threads[i], NULL, reader, i % 2 ? x : y) == 0);
    CHECK(ended(y) == BACKUP_COMPLETED && ended(x) == BACKUP_COMPLETED);
    stop = 1;
    for (i = 0; i < 16; i++) pthread_join(threads[i], NULL);
    GetStats(x, &a);
    GetStats(y, &b);
    CHECK(a.noOfFilesCopied == b.noOfFilesCopied && a.noOfBytesCopied == b.noOfBytesCopied && a.noOfFilesFailed == 0);
    printf("two: %" PRIu64 " files each, %ld reads by 16 threads\n", a.noOfFilesCopied, (long)reads);
    DestroyBackupInst(x);
    DestroyBackupInst(y);
}

/* No descriptor of this process leads below dir. */
static void nothing_open(const char *dir) {
    struct dirent *e;
    DIR *d = opendir("/proc/self/fd");
    CHECK(d != NULL);
    while ((e = readdir(d)) != NULL) {
        char link[4200], to[4096];
        ssize_t n;
        snprintf(link, sizeof link, "/proc/self/fd/%s", e->d_name);
        n = readlink(link, to, sizeof to - 1);
        if (n <= 0) continue;
        to[n] = 0;
        if (strncmp(to, dir, strlen(dir)) == 0) {
            fprintf(stderr, "%s is still open\n", to);
            exit(1);
        }
    }
    closedir(d);
}

static void destroy_while_running(const char *dst) {
    int64_t began, took;
    void *b = make(dst);
    CHECK(Start(b) == 0);
    until_running(b);
    began = clock_ms();
    DestroyBackupInst(b);
    took = clock_ms() - began;
    printf("destroy: %d ms\n", (int)took);
    fflush(stdout);
    nothing_open(dst);
    nothing_open(src);
    CHECK(GetStatus(b) == BACKUP_FAILED);
    CHECK(took < 1000);
}

static void cancel_while_running(const char *dst) {
    char why[256];
    BackupStatistics s;
    void *b = make(dst);
    CHECK(Start(b) == 0);
    CHECK(fsbackup_wait(b, 0) == BACKUP_INPROGRESS);
    until_running(b);
    CHECK(fsbackup_cancel(b) == 0 && fsbackup_cancel(b) == 0);
    CHECK(fsbackup_wait(b, -1) == BACKUP_FAILED);
    CHECK(fsbackup_message(b, why, sizeof why) > 0);
    if (strstr(why, "cancelled") == NULL) {
        fprintf(stderr, "the reason is: %s\n", why);
        exit(1);
    }
    GetStats(b, &s);
    CHECK(s.noOfFilesCopied < s.noOfFilesToBackup);
    DestroyBackupInst(b);
}

/* Destroyed at every moment of its beginning. */
static void destroy_at_once(const char *dst) {
    int64_t began, took, worst = 0;
    int i;
    for (i = 0; i < 60; i++) {
        void *b = make(dst);
        CHECK(Start(b) == 0);
        usleep((useconds_t)i * 300);
        began = clock_ms();
        DestroyBackupInst(b);
        took = clock_ms() - began;
        if (took > worst) worst = took;
        nothing_open(dst);
    }
    printf("destroyed in their first moments: at most %d ms\n", (int)worst);
    CHECK(worst < 1000);
}

static void *poll_until_gone(void *backup) {
    BackupStatistics s;
    while (GetStatus(backup) == BACKUP_INPROGRESS) {
        GetStats(backup, &s);
        pause_ms(1);
    }
    return NULL;
}

static void destroy_under_readers(const char *dst) {
    pthread_t threads[4];
    int i;
    void *b = make(dst);
    CHECK(Start(b) == 0);
    for (i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, poll_until_gone, b) == 0);
    until_running(b);
    DestroyBackupInst(b);
    for (i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

/* running SRC META DST COPY... : makes DST/one, DST/two, DST/destroyed ... */
int main(int argc, char **argv) {
    char dst[6][4096];
    static const char *names[] = {"one", "two", "destroyed", "cancelled", "atonce", "readers"};
    int i;
    CHECK(argc > 4);
    if (getenv("RUNNING_LOG") != NULL) InitLog(getenv("RUNNING_LOG"), 0);
    src = argv[1], meta = argv[2], files = argv + 4, count = argc - 4;
    for (i = 0; i < 6; i++) snprintf(dst[i], sizeof dst[i], "%s/%s", argv[3], names[i]);
    two_at_once(dst[0], dst[1]);
    destroy_while_running(dst[2]);
    cancel_while_running(dst[3]);
    destroy_at_once(dst[4]);
    destroy_under_readers(dst[5]);
    return 0;
}
