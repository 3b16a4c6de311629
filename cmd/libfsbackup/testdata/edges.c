/* Everything that crashed or hung the original, or must be refused. */
#define _GNU_SOURCE
#include <limits.h>

#include "check.h"

struct seen {
    int calls;
    int stop_after;
    fsbackup_failure last;
    char kind[32], reason[512], path[4096];
};

static int note(const fsbackup_failure *f, void *user) {
    struct seen *s = user;
    s->calls++;
    s->last = *f;
    snprintf(s->kind, sizeof s->kind, "%s", f->kind);
    snprintf(s->reason, sizeof s->reason, "%s", f->reason);
    snprintf(s->path, sizeof s->path, "%s", f->path);
    CHECK(f->size == sizeof *f && f->control_file[0] == '/' && f->operation != NULL);
    return s->stop_after != 0 && s->calls == s->stop_after;
}

static void nulls(const char *src, const char *dst, const char *meta) {
    BackupStatistics s, zero;
    fsbackup_stats all;
    char buf[16] = "x";
    memset(&s, 0xff, sizeof s);
    memset(&zero, 0, sizeof zero);
    InitLog(NULL, 1);
    CHECK(strstr(fsbackup_last_error(), "InitLog") != NULL);
    InitLog("", 1);
    CHECK(CreateBackupInst(NULL, dst, meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(strstr(fsbackup_last_error(), "source") != NULL);
    CHECK(CreateBackupInst(src, NULL, meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(strstr(fsbackup_last_error(), "destination") != NULL);
    CHECK(CreateBackupInst(src, dst, NULL, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(strstr(fsbackup_last_error(), "metaPath") != NULL);
    CHECK(CreateBackupInst(NULL, NULL, NULL, BACKUP_PHASE_COPY, true) == NULL);
    REFUSED(ConfigureThreadPool(NULL, 1, 1), "NULL");
    REFUSED(ConfigureMemory(NULL, -1), "NULL");
    REFUSED(Enqueue(NULL, "/x"), "NULL");
    REFUSED(Enqueue(NULL, NULL), "NULL");
    REFUSED(Start(NULL), "NULL");
    CHECK(GetStatus(NULL) == BACKUP_FAILED);
    GetStats(NULL, &s);
    CHECK(memcmp(&s, &zero, sizeof s) == 0);
    GetStats(NULL, NULL);
    DestroyBackupInst(NULL);
    CHECK(fsbackup_version() != NULL && fsbackup_version()[0] != 0);
    REFUSED(fsbackup_set_option(NULL, "sync", "none"), "NULL");
    CHECK(fsbackup_wait(NULL, -1) == BACKUP_FAILED);
    REFUSED(fsbackup_cancel(NULL), "NULL");
    REFUSED(fsbackup_message(NULL, buf, sizeof buf), "NULL");
    REFUSED(fsbackup_job_id(NULL, buf, sizeof buf), "NULL");
    REFUSED(fsbackup_get_stats(NULL, NULL), "size");
    all.size = sizeof all;
    REFUSED(fsbackup_get_stats(NULL, &all), "NULL");
    REFUSED(fsbackup_failures(NULL, NULL, NULL), "callback");
    REFUSED(fsbackup_failures(NULL, note, NULL), "NULL");
}

static void bad_arguments(const char *src, const char *dst, const char *meta, const char *copy, const char *del) {
    void *b, *strange = (void *)(uintptr_t)0xdeadbeef;
    fsbackup_stats all;
    int phase;
    char id[64] = "x", why[256];
    static const int phases[] = {INT_MIN, -1, 0, 5, 6, INT_MAX};
    for (phase = 0; phase < 6; phase++) {
        CHECK(CreateBackupInst(src, dst, meta, phases[phase], true) == NULL);
        CHECK(strstr(fsbackup_last_error(), "phase") != NULL);
    }
    CHECK(CreateBackupInst("src", dst, meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(CreateBackupInst(src, "./dst", meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(CreateBackupInst(src, dst, "meta", BACKUP_PHASE_COPY, true) == NULL);
    CHECK(CreateBackupInst("", dst, meta, BACKUP_PHASE_COPY, true) == NULL);
    CHECK(strstr(fsbackup_last_error(), "absolute") != NULL);

    b = CreateBackupInst(src, dst, NULL, BACKUP_PHASE_DELETE, true); /* needs no meta files */
    CHECK(b != NULL);
    DestroyBackupInst(b);

    b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL);
    REFUSED(ConfigureThreadPool(b, 0, 1), "at least 1");
    REFUSED(ConfigureThreadPool(b, 1, 0), "at least 1");
    REFUSED(ConfigureThreadPool(b, -4, INT_MIN), "at least 1");
    CHECK(ConfigureThreadPool(b, INT_MAX, INT_MAX) == 0);
    CHECK(ConfigureThreadPool(b, 2, 3) == 0);
    REFUSED(ConfigureMemory(b, 0), "0 bytes");
    REFUSED(ConfigureMemory(b, -2), "-2 bytes");
    CHECK(ConfigureMemory(b, -1) == 0 && ConfigureMemory(b, 1) == 0 && ConfigureMemory(b, 1 << 20) == 0);
    REFUSED(Enqueue(b, NULL), "not absolute");
    REFUSED(Enqueue(b, ""), "not absolute");
    REFUSED(Enqueue(b, "control_0.txt"), "not absolute");
    REFUSED(Enqueue(b, "/nowhere/control_0.txt"), "no such file");
    REFUSED(Enqueue(b, "/etc"), "not a regular file");
    REFUSED(Enqueue(b, "/etc/passwd"), "title");
    REFUSED(Enqueue(b, del), "delete control file, the instance is for copy");
    REFUSED(fsbackup_set_option(b, NULL, "1"), "NULL");
    REFUSED(fsbackup_set_option(b, "sync", NULL), "NULL");
    REFUSED(fsbackup_set_option(b, "nonsense", "1"), "no option");
    REFUSED(fsbackup_set_option(b, "fail_fast", "yes"), "0 or 1");
    REFUSED(fsbackup_set_option(b, "replace", "sometimes"), "replace");
    REFUSED(fsbackup_set_option(b, "verify", "md5"), "none, checksum");
    CHECK(fsbackup_set_option(b, "verify", "checksum") == 0 && fsbackup_set_option(b, "verify", "none") == 0);
    REFUSED(fsbackup_set_option(b, "priority", "5"), "-4 to 4");
    CHECK(fsbackup_set_option(b, "replace", "if-older") == 0);
    CHECK(GetStatus(b) == BACKUP_INPROGRESS && fsbackup_wait(b, 20) == BACKUP_INPROGRESS); /* from the beginning */
    CHECK(fsbackup_message(b, NULL, 0) == 0);
    REFUSED(Start(b), "no control file"); /* Start without Enqueue */
    CHECK(GetStatus(b) == BACKUP_FAILED && fsbackup_wait(b, -1) == BACKUP_FAILED); /* nobody waits for ever */
    CHECK(fsbackup_message(b, why, sizeof why) > 0 && strstr(why, "no control file") != NULL);
    REFUSED(fsbackup_cancel(b), "not been started");
    CHECK(fsbackup_job_id(b, id, sizeof id) == 0 && id[0] == 0);
    CHECK(Enqueue(b, copy) == 0); /* it is as usable as before */
    all.size = sizeof all;
    CHECK(fsbackup_get_stats(b, &all) == 0 && all.control_files == 1 && all.files_to_backup > 0 && all.files_copied == 0);
    DestroyBackupInst(b);

    DestroyBackupInst(b); /* twice */
    CHECK(strstr(fsbackup_last_error(), "has been destroyed") != NULL);
    REFUSED(Start(b), "has been destroyed");
    REFUSED(Enqueue(strange, copy), "none that CreateBackupInst returned");
    DestroyBackupInst(strange);
    CHECK(GetStatus(strange) == BACKUP_FAILED);
}

static void several_files(const char *src, const char *dst, const char *meta, char **files, int n) {
    BackupStatistics s, before;
    fsbackup_stats all;
    int i;
    char id[64];
    void *b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL);
    memset(&before, 0xff, sizeof before);
    GetStats(b, &before); /* before Start */
    CHECK(before.noOfFilesToBackup == 0 && before.backupspeed == 0);
    for (i = 0; i < n; i++) CHECK(Enqueue(b, files[i]) == 0);
    GetStats(b, &before);
    CHECK(before.noOfFilesToBackup > 0 && before.noOfDirToBackup > 0 && before.noOfFilesCopied == 0);
    CHECK(Start(b) == 0);
    REFUSED(Start(b), "started already");
    REFUSED(Enqueue(b, files[0]), "has been started");
    REFUSED(ConfigureThreadPool(b, 1, 1), "has been started");
    REFUSED(ConfigureMemory(b, -1), "has been started");
    REFUSED(fsbackup_set_option(b, "sync", "none"), "has been started");
    if (fsbackup_wait(b, -1) != BACKUP_COMPLETED) {
        char why[1024];
        fsbackup_message(b, why, sizeof why);
        fprintf(stderr, "%s\n", why);
    }
    CHECK(GetStatus(b) == BACKUP_COMPLETED);
    CHECK(fsbackup_wait(b, 0) == BACKUP_COMPLETED);
    REFUSED(Start(b), "started already"); /* also when it has ended */
    CHECK(fsbackup_cancel(b) == 0 && GetStatus(b) == BACKUP_COMPLETED);
    GetStats(b, &s);
    all.size = sizeof all;
    CHECK(fsbackup_get_stats(b, &all) == 0);
    CHECK(all.control_files == (uint64_t)n && all.control_files_refused == 0);
    CHECK(s.noOfFilesCopied == s.noOfFilesToBackup && s.noOfDirCopied == s.noOfDirToBackup && s.noOfBytesCopied == s.noOfBytesToBackup);
    CHECK(s.noOfFilesFailed + s.noOfDirFailed == 0 && s.noOfFilesCopied > 0 && s.noOfDirCopied > 0);
    CHECK(all.files_copied == s.noOfFilesCopied && all.bytes_copied == s.noOfBytesCopied);
    all.size = 16; /* an older caller's structure */
    all.files_to_backup = 4711;
    CHECK(fsbackup_get_stats(b, &all) == 0 && all.dirs_to_backup == s.noOfDirToBackup && all.files_to_backup == 4711);
    CHECK(fsbackup_job_id(b, id, sizeof id) == 26 && strlen(id) == 26);
    CHECK(fsbackup_job_id(b, id, 5) == 26 && strlen(id) == 4);
    CHECK(fsbackup_message(b, id, sizeof id) == 0 && id[0] == 0);
    printf("files %" PRIu64 " dirs %" PRIu64 "\n", s.noOfFilesCopied, s.noOfDirCopied);
    DestroyBackupInst(b);
}

/* One file of the tree is gone: a figure, or on request a failure. */
static void failing_entries(const char *src, const char *dst, const char *meta, char **files, int n, int strict) {
    BackupStatistics s;
    struct seen seen;
    char why[256];
    int i;
    void *b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(b != NULL);
    for (i = 0; i < n; i++) CHECK(Enqueue(b, files[i]) == 0);
    if (strict) CHECK(fsbackup_set_option(b, "fail_on_entry_failures", "1") == 0);
    CHECK(Start(b) == 0);
    CHECK(ended(b) == (strict ? BACKUP_FAILED : BACKUP_COMPLETED));
    GetStats(b, &s);
    CHECK(s.noOfFilesFailed == 2 && s.noOfFilesCopied == s.noOfFilesToBackup - 2);
    memset(&seen, 0, sizeof seen);
    CHECK(fsbackup_failures(b, note, &seen) == 2 && seen.calls == 2);
    CHECK(strcmp(seen.kind, "not-found") == 0 && seen.last.error == 2 && seen.last.line > 0 && !seen.last.is_dir);
    CHECK(seen.last.phase == BACKUP_PHASE_COPY && strncmp(seen.path, "gone", 4) == 0);
    memset(&seen, 0, sizeof seen);
    seen.stop_after = 1;
    CHECK(fsbackup_failures(b, note, &seen) == 1);
    CHECK(fsbackup_message(b, why, sizeof why) >= 0);
    CHECK(strict == (strstr(why, "2 files failed") != NULL));
    DestroyBackupInst(b);
}

/* A control file whose counts are wrong fails the job, the others are done. */
static void unusable_control_file(const char *src, const char *dst, const char *meta, const char *good, const char *bad) {
    fsbackup_stats all;
    struct seen seen;
    void *b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(Enqueue(b, bad) == 0 && Enqueue(b, good) == 0 && Start(b) == 0);
    CHECK(ended(b) == BACKUP_FAILED);
    all.size = sizeof all;
    CHECK(fsbackup_get_stats(b, &all) == 0 && all.control_files_refused == 1 && all.control_files == 2 && all.files_copied > 0);
    memset(&seen, 0, sizeof seen);
    CHECK(fsbackup_failures(b, note, &seen) >= 1);
    DestroyBackupInst(b);
    CHECK(CreateBackupInst != NULL);
}

/* A control file that is gone when Start looks, and meta files that are not there. */
static void missing_files(const char *src, const char *dst, const char *meta, const char *empty, const char *copy, const char *scratch) {
    BackupStatistics s;
    struct seen seen;
    char cmd[8192], path[2048], why[1024];
    int i;
    void *b = CreateBackupInst(src, dst, "/nowhere", BACKUP_PHASE_COPY, true);
    CHECK(Enqueue(b, copy) == 0);
    REFUSED(Start(b), "metaPath");
    REFUSED(Start(b), "metaPath"); /* it was not started */
    CHECK(GetStatus(b) == BACKUP_FAILED);
    CHECK(fsbackup_message(b, why, sizeof why) > 0 && strstr(why, "/nowhere") != NULL);
    GetStats(b, &s);
    CHECK(s.noOfFilesToBackup > 0 && s.noOfBytesToBackup > 0 && s.noOfFilesCopied == 0); /* what headers say */
    DestroyBackupInst(b);

    for (i = 0; i < 2; i++) {
        b = CreateBackupInst(src, dst, i == 0 ? "" : empty, BACKUP_PHASE_COPY, true);
        CHECK(b != NULL && Enqueue(b, copy) == 0);
        REFUSED(Start(b), "metaPath");
        CHECK(GetStatus(b) == BACKUP_FAILED);
        DestroyBackupInst(b);
    }

    /* A metaPath without the files that are named is the instance's failure, not that of its entries. */
    for (i = 0; i < 2; i++) {
        const char *lost = i == 0 ? "/xmeta_file_0" : "/meta_file_0";
        snprintf(path, sizeof path, "%s/part%d", scratch, i);
        snprintf(cmd, sizeof cmd, "cp -r '%s' '%s' && rm '%s'%s", meta, path, path, lost);
        CHECK(system(cmd) == 0);
        b = CreateBackupInst(src, dst, path, BACKUP_PHASE_COPY, true);
        CHECK(Enqueue(b, copy) == 0 && Start(b) == 0);
        CHECK(ended(b) == BACKUP_FAILED);
        CHECK(fsbackup_message(b, why, sizeof why) > 0 && strstr(why, lost) != NULL);
        GetStats(b, &s);
        CHECK(s.noOfFilesToBackup > 0 && s.noOfBytesToBackup > 0 && s.noOfFilesCopied + s.noOfDirCopied + s.noOfFilesFailed + s.noOfDirFailed == 0);
        CHECK(fsbackup_failures(b, note, &seen) == 0);
        DestroyBackupInst(b);
    }

    snprintf(path, sizeof path, "%s/control_0_abc.txt", scratch);
    snprintf(cmd, sizeof cmd, "cp '%s' '%s'", copy, path);
    CHECK(system(cmd) == 0);
    b = CreateBackupInst(src, dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(Enqueue(b, path) == 0 && unlink(path) == 0);
    CHECK(Start(b) == 0 && ended(b) == BACKUP_FAILED);
    CHECK(fsbackup_message(b, why, sizeof why) > 0 && strstr(why, "control_0_abc.txt") != NULL);
    CHECK(fsbackup_failures(b, note, &seen) == 0);
    DestroyBackupInst(b);

    b = CreateBackupInst("/nowhere", dst, meta, BACKUP_PHASE_COPY, true);
    CHECK(Enqueue(b, copy) == 0);
    REFUSED(Start(b), "open source");
    DestroyBackupInst(b);
    b = CreateBackupInst(src, "/etc/passwd/dst", meta, BACKUP_PHASE_COPY, true);
    CHECK(Enqueue(b, copy) == 0);
    REFUSED(Start(b), "write to destination");
    DestroyBackupInst(b);
}

/* edges SRC DST META EMPTY SCRATCH DELETE BAD COPY... */
int main(int argc, char **argv) {
    const char *src = argv[1], *dst = argv[2], *meta = argv[3], *empty = argv[4], *scratch = argv[5];
    const char *del = argv[6], *bad = argv[7];
    char **copy = argv + 8;
    char gone[2][4096];
    int i, n = argc - 8;
    CHECK(n >= 2);
    nulls(src, dst, meta);
    bad_arguments(src, dst, meta, copy[0], del);
    several_files(src, dst, meta, copy, n);
    for (i = 0; i < 2; i++) {
        snprintf(gone[i], sizeof gone[i], "%s/gone%d", src, i);
        CHECK(unlink(gone[i]) == 0);
    }
    failing_entries(src, dst, meta, copy, n, 0);
    failing_entries(src, dst, meta, copy, n, 1);
    unusable_control_file(src, dst, meta, copy[0], bad);
    missing_files(src, dst, meta, empty, copy[0], scratch);
    return 0;
}
