/*
 * A program with a life of its own: signal handlers, threads, children. It loads
 * the library at run time, so that it can see what loading changes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <fsbackup.h>

#define CHECK(holds)                                                       \
    do {                                                                   \
        if (!(holds)) {                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #holds);    \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

static struct {
    void (*InitLog)(const char *, int);
    void *(*CreateBackupInst)(const char *, const char *, const char *, int, bool);
    int (*ConfigureThreadPool)(void *, int, int);
    int (*ConfigureMemory)(void *, int);
    int (*Enqueue)(void *, const char *);
    int (*Start)(void *);
    int (*GetStatus)(void *);
    void (*GetStats)(void *, BackupStatistics *);
    void (*DestroyBackupInst)(void *);
    const char *(*version)(void);
    const char *(*last_error)(void);
    int (*set_option)(void *, const char *, const char *);
    int (*wait)(void *, int);
    int (*cancel)(void *);
    int (*message)(void *, char *, size_t);
    int (*get_stats)(void *, fsbackup_stats *);
    int64_t (*failures)(void *, fsbackup_failure_callback, void *);
} lib;

static void load(const char *path) {
    void *l = dlopen(path, RTLD_NOW);
    if (l == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define SYMBOL(field, name) CHECK((*(void **)&lib.field = dlsym(l, name)) != NULL)
    SYMBOL(InitLog, "InitLog");
    SYMBOL(CreateBackupInst, "CreateBackupInst");
    SYMBOL(ConfigureThreadPool, "ConfigureThreadPool");
    SYMBOL(ConfigureMemory, "ConfigureMemory");
    SYMBOL(Enqueue, "Enqueue");
    SYMBOL(Start, "Start");
    SYMBOL(GetStatus, "GetStatus");
    SYMBOL(GetStats, "GetStats");
    SYMBOL(DestroyBackupInst, "DestroyBackupInst");
    SYMBOL(version, "fsbackup_version");
    SYMBOL(last_error, "fsbackup_last_error");
    SYMBOL(set_option, "fsbackup_set_option");
    SYMBOL(wait, "fsbackup_wait");
    SYMBOL(cancel, "fsbackup_cancel");
    SYMBOL(message, "fsbackup_message");
    SYMBOL(get_stats, "fsbackup_get_stats");
    SYMBOL(failures, "fsbackup_failures");
}

/* ---- What a library must not change ---------------------------------------- */

struct host {
    struct sigaction acts[NSIG];
    sigset_t mask;
    struct rlimit limits[RLIM_NLIMITS];
    char dir[4096];
    mode_t umask;
};

static void look(struct host *h) {
    int i;
    memset(h, 0, sizeof *h);
    for (i = 1; i < NSIG; i++) sigaction(i, NULL, &h->acts[i]);
    pthread_sigmask(SIG_SETMASK, NULL, &h->mask);
    for (i = 0; i < RLIM_NLIMITS; i++) getrlimit(i, &h->limits[i]);
    CHECK(getcwd(h->dir, sizeof h->dir) != NULL);
    h->umask = umask(0);
    umask(h->umask);
}

static void same(const struct host *a, const char *when) {
    struct host b;
    int i;
    look(&b);
    for (i = 1; i < NSIG; i++) {
        /* Documented: four have a handler of the runtime, that of SIGCHLD gets SA_ONSTACK. */
        int runtimes = i == SIGSEGV || i == SIGBUS || i == SIGFPE || i == SIGURG, flags = i == SIGCHLD ? SA_ONSTACK : 0;
        if (runtimes) continue;
        if (a->acts[i].sa_handler != b.acts[i].sa_handler || (a->acts[i].sa_flags | flags) != (b.acts[i].sa_flags | flags)) {
            fprintf(stderr, "%s: the disposition of signal %d has changed\n", when, i);
            exit(1);
        }
    }
    for (i = 1; i < NSIG; i++) CHECK(sigismember(&a->mask, i) == sigismember(&b.mask, i));
    for (i = 0; i < RLIM_NLIMITS; i++) {
        if (a->limits[i].rlim_cur != b.limits[i].rlim_cur || a->limits[i].rlim_max != b.limits[i].rlim_max) {
            fprintf(stderr, "%s: limit %d has changed from %ld to %ld\n", when, i, (long)a->limits[i].rlim_cur, (long)b.limits[i].rlim_cur);
            exit(1);
        }
    }
    CHECK(strcmp(a->dir, b.dir) == 0 && a->umask == b.umask);
}

/* ---- Signals ---------------------------------------------------------------- */

static __thread int ours; /* set in the threads of this program */
static atomic_long handled[NSIG];
static atomic_long on_foreign_threads;

static void handler(int sig) {
    char big[4096]; /* more than a goroutine's stack may have */
    memset(big, sig, sizeof big);
    __asm__ volatile("" : : "r"(big) : "memory");
    if (!ours && sig != SIGCHLD) on_foreign_threads++;
    handled[sig]++;
}

static sigjmp_buf back;
static void fault(int sig) { siglongjmp(back, sig); }

static void catch_faults(const char *when) {
    int got = sigsetjmp(back, 1);
    if (got == 0) {
        *(volatile int *)16 = 1;
        CHECK(!"reached");
    }
    if (got != SIGSEGV) {
        fprintf(stderr, "%s: signal %d\n", when, got);
        exit(1);
    }
}

static const int sent[] = {SIGUSR1, SIGUSR2, SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGALRM, SIGWINCH, SIGIO, SIGPIPE};
enum { SENT = sizeof sent / sizeof sent[0] };

static void install(int flags) {
    for (int i = 0; i < SENT; i++) {
        struct sigaction a;
        memset(&a, 0, sizeof a);
        a.sa_handler = handler;
        a.sa_flags = flags; /* on purpose without SA_ONSTACK */
        sigaction(sent[i], &a, NULL);
    }
}

static atomic_int stop;
static void *backup;

/* Threads begin with all signals blocked, so that none meets one not marked yet. */
static void begin(void) {
    sigset_t none;
    ours = 1;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
}

/* Sends each signal and waits until its handler has run. */
static void *sender(void *unused) {
    (void)unused;
    begin();
    for (int round = 0; round < 200 || !stop; round++) {
        int sig = sent[round % SENT];
        long before = handled[sig];
        kill(getpid(), sig);
        while (handled[sig] == before) sched_yield();
        if (round % 50 == 0) {
            struct timespec t = {0, 1000000};
            nanosleep(&t, NULL);
        }
    }
    return NULL;
}

static void *caller(void *unused) {
    (void)unused;
    begin();
    while (!stop) {
        BackupStatistics s;
        lib.GetStats(backup, &s);
        lib.wait(backup, 1);
    }
    return NULL;
}

static char *src, *dst, *meta, *file;

static void run_job(void) {
    pthread_t threads[3];
    sigset_t all, mask;
    backup = lib.CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(backup != NULL && lib.Enqueue(backup, file) == 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    CHECK(pthread_create(&threads[0], NULL, sender, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, caller, NULL) == 0);
    CHECK(pthread_create(&threads[2], NULL, caller, NULL) == 0);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    CHECK(lib.Start(backup) == 0);
    while (lib.GetStatus(backup) == BACKUP_INPROGRESS) sched_yield();
    CHECK(lib.GetStatus(backup) == BACKUP_COMPLETED);
    stop = 1;
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    stop = 0;
    CHECK(on_foreign_threads == 0);
}

/* ---- Fork ------------------------------------------------------------------- */

static int never(const fsbackup_failure *f, void *user) {
    (void)f, (void)user;
    abort();
}

/* In the child every call returns at once, and says why. */
static void in_child(void) {
    BackupStatistics s;
    fsbackup_stats all;
    char text[8];
    signal(SIGALRM, SIG_DFL);
    alarm(20); /* instead of hanging */
    memset(&s, 0xff, sizeof s);
    all.size = sizeof all;
    lib.InitLog("/tmp", 0);
    CHECK(strstr(lib.last_error(), "forked") != NULL);
    CHECK(lib.CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(lib.ConfigureThreadPool(backup, 1, 1) == -1 && lib.ConfigureMemory(backup, -1) == -1);
    CHECK(lib.Enqueue(backup, file) == -1 && lib.Start(backup) == -1);
    CHECK(lib.GetStatus(backup) == BACKUP_FAILED);
    lib.GetStats(backup, &s);
    CHECK(s.noOfFilesCopied == 0 && s.backupspeed == 0);
    CHECK(lib.version() != NULL);
    CHECK(lib.set_option(backup, "sync", "none") == -1 && lib.wait(backup, -1) == BACKUP_FAILED && lib.cancel(backup) == -1);
    CHECK(lib.message(backup, text, sizeof text) == -1 && lib.get_stats(backup, &all) == -1);
    CHECK(lib.failures(backup, never, NULL) == -1);
    lib.DestroyBackupInst(backup);
    CHECK(strstr(lib.last_error(), "forked") != NULL);
}

static void fork_while_running(void) {
    backup = lib.CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(lib.Enqueue(backup, file) == 0 && lib.Start(backup) == 0);
    for (int i = 0; i < 20; i++) {
        int status;
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            in_child();
            if (i % 2) _exit(42);
            exit(42); /* runs destructors, which must leave the parent's files alone */
        }
        while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    }
    CHECK(lib.wait(backup, -1) == BACKUP_COMPLETED); /* the parent never noticed */
    lib.DestroyBackupInst(backup);
}

/* host LIBRARY SRC DST META COPY */
int main(int argc, char **argv) {
    struct host before, fresh;
    struct sigaction a;
    struct rlimit files;
    sigset_t some;
    CHECK(argc == 6);
    ours = 1;
    src = argv[2], dst = argv[3], meta = argv[4], file = argv[5];
    memset(&a, 0, sizeof a);
    a.sa_handler = fault;
    sigaction(SIGSEGV, &a, NULL);
    install(SA_RESTART);
    a.sa_handler = SIG_IGN;
    sigaction(SIGQUIT, &a, NULL);
    umask(027);
    CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
    if (files.rlim_cur == files.rlim_max && files.rlim_cur > 200) files.rlim_cur = files.rlim_max / 2;
    CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
    sigemptyset(&some);
    sigaddset(&some, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &some, NULL);
    look(&before);
    catch_faults("before load");

    load(argv[1]);
    same(&before, "after load");
    catch_faults("after load");
    run_job();
    same(&before, "after a job");
    catch_faults("after a job");
    lib.DestroyBackupInst(backup);
    same(&before, "after destroy");

    install(0); /* handlers that come later, with other flags */
    look(&fresh);
    run_job();
    lib.DestroyBackupInst(backup);
    same(&fresh, "after a job with new handlers");
    fork_while_running();
    same(&fresh, "after forks");
    for (int i = 0; i < SENT; i++) CHECK(handled[sent[i]] > 0);
    printf("signals handled: %ld SIGUSR1, %ld SIGTERM; on foreign threads: %ld\n", (long)handled[SIGUSR1], (long)handled[SIGTERM], (long)on_foreign_threads);
    return 0;
}
