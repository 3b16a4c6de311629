/*
 * The exported functions. They stand between the caller and the Go runtime for
 * three reasons:
 *
 * - In a forked child the runtime's threads are missing: a call into it would
 *   hang. Every function compares the process id first.
 * - A signal handler of the caller must not run on a goroutine's stack, which is
 *   small. So the runtime's threads block all signals that they do not need
 *   themselves, and so does a thread of the caller while it is in Go.
 * - What the runtime changes when it starts, the caller gets back: signal
 *   dispositions, and the soft limit of open files.
 */
#define _GNU_SOURCE /* nftw */
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "_cgo_export.h"
#include "bridge.h"

/*
 * Signals that the runtime never blocks on its threads. It has handlers for the
 * first four: faults in Go code become panics, SIGURG preempts.
 */
static const int open_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGURG, SIGILL, SIGTRAP, SIGABRT, SIGSTKFLT, SIGCHLD, SIGPROF, SIGSYS};
enum { OPEN = sizeof open_signals / sizeof open_signals[0] };

static pid_t home;       /* the process in which Go runs */
static sigset_t foreign; /* signals that are the caller's alone */

/* ---- Errors ---------------------------------------------------------------- */

/*
 * The text of a thread's last call that failed. Not a __thread array: a library
 * with Go in it has its thread-local storage in the little room that programs
 * keep for those that are loaded later.
 */
static pthread_key_t error_key;
static pthread_once_t error_once = PTHREAD_ONCE_INIT;

static void make_error_key(void) { (void)pthread_key_create(&error_key, free); }

static char *error_text(void) {
    static char none[BRIDGE_ERROR]; /* shared by threads that get no memory */
    char *text;
    pthread_once(&error_once, make_error_key);
    text = pthread_getspecific(error_key);
    if (text == NULL) {
        text = calloc(1, BRIDGE_ERROR);
        if (text == NULL || pthread_setspecific(error_key, text) != 0) {
            free(text);
            text = none;
        }
    }
    return text;
}

/* ---- Load ------------------------------------------------------------------ */

#ifndef FSBACKUP_LIBRARY

/* The package's tests: an ordinary Go program, whose signals are Go's. */
void bridge_runtime_up(void) { home = getpid(); }

#else

static struct sigaction before[NSIG];
static struct rlimit files_before;
static sigset_t mask_before;
static pthread_mutex_t up_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t up_cond = PTHREAD_COND_INITIALIZER;
static int up;

/*
 * Runs before the constructor that starts the Go runtime, whose first thread
 * inherits the mask set here and hands it on to all others.
 */
__attribute__((constructor(101))) static void before_runtime(void) {
    home = getpid();
    sigfillset(&foreign);
    for (size_t i = 0; i < OPEN; i++) sigdelset(&foreign, open_signals[i]);
    for (int s = 1; s < NSIG; s++) sigaction(s, NULL, &before[s]);
    getrlimit(RLIMIT_NOFILE, &files_before);
    pthread_sigmask(SIG_BLOCK, &foreign, &mask_before);
}

/* Runs on a thread of the runtime once every package is initialised. */
void bridge_runtime_up(void) {
    struct rlimit now;
    if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_max == files_before.rlim_max &&
        now.rlim_cur != files_before.rlim_cur)
        setrlimit(RLIMIT_NOFILE, &files_before);
    for (int s = 1; s < NSIG; s++) {
        struct sigaction act;
        if (sigismember(&foreign, s) == 1 && sigaction(s, NULL, &act) == 0 &&
            (act.sa_handler != before[s].sa_handler || act.sa_flags != before[s].sa_flags))
            sigaction(s, &before[s], NULL);
    }
    pthread_mutex_lock(&up_lock);
    up = 1;
    pthread_cond_broadcast(&up_cond);
    pthread_mutex_unlock(&up_lock);
}

/*
 * Runs after that constructor, and waits for the runtime: when loading returns,
 * everything is as it was. The limit is for loaders that let no other thread
 * start meanwhile.
 */
__attribute__((constructor)) static void after_runtime(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    pthread_mutex_lock(&up_lock);
    while (!up && pthread_cond_timedwait(&up_cond, &up_lock, &until) == 0) {
    }
    pthread_mutex_unlock(&up_lock);
    pthread_sigmask(SIG_SETMASK, &mask_before, NULL);
}

#endif

/* ---- Exit ------------------------------------------------------------------ */

static char leftover[PATH_MAX];
static pthread_mutex_t leftover_lock = PTHREAD_MUTEX_INITIALIZER;

void bridge_remove_at_exit(const char *dir) {
    pthread_mutex_lock(&leftover_lock);
    snprintf(leftover, sizeof leftover, "%s", dir != NULL ? dir : "");
    pthread_mutex_unlock(&leftover_lock);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    (void)remove(path);
    return 0;
}

/* Without Go: it may be in the middle of anything. */
__attribute__((destructor)) static void at_exit(void) {
    if (getpid() == home && leftover[0] == '/') nftw(leftover, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- Calls ----------------------------------------------------------------- */

/*
 * A handler of the caller for one of open_signals may run on a thread of the
 * runtime, and must then have the stack that the runtime provides for it. For
 * handlers from before it was loaded the runtime does the same.
 */
static void use_alternate_stacks(void) {
    for (size_t i = 0; i < OPEN; i++) {
        struct sigaction act;
        if (sigaction(open_signals[i], NULL, &act) == 0 && act.sa_handler != SIG_DFL && act.sa_handler != SIG_IGN &&
            !(act.sa_flags & SA_ONSTACK)) {
            act.sa_flags |= SA_ONSTACK;
            sigaction(open_signals[i], &act, NULL);
        }
    }
}

static int enter(sigset_t *mask) {
    if (getpid() != home) {
        snprintf(error_text(), BRIDGE_ERROR,
                 "this process was forked from one that had loaded libfsbackup: call it there, or exec first");
        return 0;
    }
    pthread_sigmask(SIG_BLOCK, &foreign, mask);
    use_alternate_stacks();
    return 1;
}

static void leave(const sigset_t *mask) {
    int saved = errno;
    pthread_sigmask(SIG_SETMASK, mask, NULL);
    errno = saved;
}

/* Evaluates call in Go; refused is its value in a forked child. */
#define IN_GO(type, refused, call)    \
    do {                              \
        sigset_t mask;                \
        type result;                  \
        if (!enter(&mask)) return refused; \
        result = (call);              \
        leave(&mask);                 \
        return result;                \
    } while (0)

void InitLog(const char *fullLogPath, int logLevel) {
    sigset_t mask;
    if (!enter(&mask)) return;
    bridgeInitLog((char *)fullLogPath, logLevel, error_text());
    leave(&mask);
}

void *CreateBackupInst(const char *source, const char *destination, const char *metaPath, int phase, bool writeMeta) {
    IN_GO(void *, NULL,
          (void *)bridgeCreate((char *)source, (char *)destination, (char *)metaPath, phase, writeMeta, error_text()));
}

int ConfigureThreadPool(void *backupHandle, int readThreadNum, int writeThreadNum) {
    IN_GO(int, -1, bridgeThreads((uintptr_t)backupHandle, readThreadNum, writeThreadNum, error_text()));
}

int ConfigureMemory(void *backupHandle, int maxMemory) {
    IN_GO(int, -1, bridgeMemory((uintptr_t)backupHandle, maxMemory, error_text()));
}

int Enqueue(void *backupHandle, const char *backupControlFile) {
    IN_GO(int, -1, bridgeEnqueue((uintptr_t)backupHandle, (char *)backupControlFile, error_text()));
}

int Start(void *backupHandle) {
    /* Here and not in Go, which has the environment of when it was loaded. */
    bridge_cluster c = {getenv("FSBACKUP_NATS_URL"), getenv("FSBACKUP_NATS_CREDS"), getenv("FSBACKUP_NATS_NKEY"),
                        getenv("FSBACKUP_TLS_CA"),   getenv("FSBACKUP_TLS_CERT"),   getenv("FSBACKUP_TLS_KEY"),
                        getenv("FSBACKUP_POOL"),     getenv("TMPDIR")};
    if (c.url == NULL) c.url = getenv("FSBACKUP_NATS");
    IN_GO(int, -1, bridgeStart((uintptr_t)backupHandle, &c, error_text()));
}

int GetStatus(void *backupHandle) { IN_GO(int, BACKUP_FAILED, bridgeStatus((uintptr_t)backupHandle, error_text())); }

void GetStats(void *backupHandle, BackupStatistics *backupStats) {
    fsbackup_stats s;
    if (backupStats == NULL) return;
    memset(backupStats, 0, sizeof *backupStats);
    s.size = sizeof s;
    if (fsbackup_get_stats(backupHandle, &s) != 0) return;
    backupStats->noOfDirToBackup = s.dirs_to_backup;
    backupStats->noOfFilesToBackup = s.files_to_backup;
    backupStats->noOfBytesToBackup = s.bytes_to_backup;
    backupStats->noOfDirCopied = s.dirs_copied;
    backupStats->noOfFilesCopied = s.files_copied;
    backupStats->noOfBytesCopied = s.bytes_copied;
    backupStats->noOfDirFailed = s.dirs_failed;
    backupStats->noOfFilesFailed = s.files_failed;
    backupStats->backupspeed = s.bytes_per_second / 1024;
}

void DestroyBackupInst(void *backupHandle) {
    sigset_t mask;
    if (backupHandle == NULL || !enter(&mask)) return;
    bridgeDestroy((uintptr_t)backupHandle, error_text());
    leave(&mask);
}

/* Texts that never change, and are asked for once. */
static const char *constant(char *text, size_t size, void (*ask)(char *, size_t)) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    sigset_t mask;
    if (!enter(&mask)) return text;
    pthread_mutex_lock(&lock);
    if (text[0] == 0) ask(text, size);
    pthread_mutex_unlock(&lock);
    leave(&mask);
    return text;
}

const char *fsbackup_version(void) {
    static char text[128];
    return constant(text, sizeof text, bridgeVersion);
}

const char *fsbackup_commit(void) {
    static char text[128];
    return constant(text, sizeof text, bridgeCommit);
}

const char *fsbackup_last_error(void) { return error_text(); }

int fsbackup_set_option(void *handle, const char *name, const char *value) {
    IN_GO(int, -1, bridgeSetOption((uintptr_t)handle, (char *)name, (char *)value, error_text()));
}

static int wait_a_little(void *handle, int ms) { IN_GO(int, BACKUP_FAILED, bridgeWait((uintptr_t)handle, ms, error_text())); }

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int fsbackup_wait(void *handle, int timeout_ms) {
    /* In pieces, so that signals of the caller get through to this thread. */
    const int piece = 50;
    int64_t until = now_ms() + timeout_ms;
    for (;;) {
        int64_t left = timeout_ms < 0 ? piece : until - now_ms();
        int status = wait_a_little(handle, left > piece ? piece : left < 0 ? 0 : (int)left);
        if (status != BACKUP_INPROGRESS || (timeout_ms >= 0 && now_ms() >= until)) return status;
    }
}

int fsbackup_cancel(void *handle) { IN_GO(int, -1, bridgeCancel((uintptr_t)handle, error_text())); }

int fsbackup_message(void *handle, char *buffer, size_t size) {
    IN_GO(int, -1, bridgeMessage((uintptr_t)handle, buffer, buffer == NULL ? 0 : size, error_text()));
}

int fsbackup_job_id(void *handle, char *buffer, size_t size) {
    IN_GO(int, -1, bridgeJobID((uintptr_t)handle, buffer, buffer == NULL ? 0 : size, error_text()));
}

static int get_stats(void *handle, fsbackup_stats *all) { IN_GO(int, -1, bridgeStats((uintptr_t)handle, all, error_text())); }

int fsbackup_get_stats(void *handle, fsbackup_stats *stats) {
    fsbackup_stats all;
    uint64_t size;
    if (stats == NULL || stats->size < sizeof stats->size || stats->size > 4096) {
        snprintf(error_text(), BRIDGE_ERROR, "fsbackup_get_stats: set size to sizeof(fsbackup_stats)");
        return -1;
    }
    size = stats->size;
    memset(stats, 0, size);
    stats->size = size;
    memset(&all, 0, sizeof all);
    if (get_stats(handle, &all) != 0) return -1;
    all.size = size;
    memcpy(stats, &all, size < sizeof all ? size : sizeof all);
    return 0;
}

static int get_page(void *handle, bridge_page *page) {
    IN_GO(int, -1, bridgeFailures((uintptr_t)handle, page, error_text()));
}

static void free_page(bridge_page *page) {
    for (size_t i = 0; i < page->count; i++) {
        free((void *)page->items[i].control_file);
        free((void *)page->items[i].path);
        free((void *)page->items[i].operation);
        free((void *)page->items[i].kind);
        free((void *)page->items[i].reason);
    }
    free(page->items);
}

int64_t fsbackup_failures(void *handle, fsbackup_failure_callback callback, void *user) {
    bridge_page page;
    int64_t calls = 0;
    memset(&page, 0, sizeof page);
    if (callback == NULL) {
        snprintf(error_text(), BRIDGE_ERROR, "fsbackup_failures: callback is NULL");
        return -1;
    }
    do {
        int stop = 0;
        if (get_page(handle, &page) != 0) return -1;
        /* Called from here and not from Go, so that it may do what it likes. */
        for (size_t i = 0; i < page.count && !stop; i++, calls++) stop = callback(&page.items[i], user) != 0;
        free_page(&page);
        if (stop) break;
    } while (page.next[0] != 0);
    return calls;
}
