/*
 * Runs the control files of a scan: all four phases, one instance each.
 *
 *     cc -o backup backup.c -lfsbackup
 *     fsbackup scan /srv/data --out /tmp/scan
 *     ./backup /srv/data /backup/data /tmp/scan/meta/latest /tmp/scan/ctrl
 *
 * With FSBACKUP_NATS_URL=nats://HOST:4222 in the environment the work is done
 * by that cluster instead, and nothing else changes.
 */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <fsbackup.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int starts_with(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

/* The phase of a control file, by its name; 0 = it is none. */
static int phase_of(const char *name) {
    size_t n = strlen(name);
    if (n < 4 || strcmp(name + n - 4, ".txt") != 0) return 0;
    if (starts_with(name, "control_")) return BACKUP_PHASE_COPY;
    if (starts_with(name, "delete_")) return BACKUP_PHASE_DELETE;
    if (starts_with(name, "hardlink_")) return BACKUP_PHASE_HARDLINK;
    if (starts_with(name, "mtime_")) return BACKUP_PHASE_DIR;
    return 0;
}

static int enqueue_all(void *backup, int phase, const char *dir) {
    struct dirent *e;
    DIR *d = opendir(dir);
    int found = 0;
    if (d == NULL) {
        perror(dir);
        return -1;
    }
    while (found >= 0 && (e = readdir(d)) != NULL) {
        char path[4096];
        if (phase_of(e->d_name) != phase) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (Enqueue(backup, path) != 0) {
            fprintf(stderr, "%s\n", fsbackup_last_error());
            found = -1;
        } else {
            found++;
        }
    }
    closedir(d);
    return found;
}

static int print_failure(const fsbackup_failure *f, void *user) {
    (void)user;
    fprintf(stderr, "%s:%" PRIu64 ": %s\n", f->control_file, f->line, f->reason);
    return 0;
}

/* Returns 0 if the phase completed, and without failed entries. */
static int run_phase(const char *source, const char *destination, const char *meta, const char *control, int phase) {
    static const char *const names[] = {"", "copy", "delete", "hardlink", "dir"};
    const struct timespec pause = {0, 20 * 1000 * 1000};
    BackupStatistics s;
    int files, status = BACKUP_FAILED;

    void *backup = CreateBackupInst(source, destination, meta, phase, true); /* step 2 */
    if (backup == NULL) {
        fprintf(stderr, "%s\n", fsbackup_last_error());
        return 1;
    }
    /* Step 3 is optional. */
    if (ConfigureThreadPool(backup, 8, 8) != 0 || ConfigureMemory(backup, 32 * 1024 * 1024) != 0) {
        fprintf(stderr, "%s\n", fsbackup_last_error());
    }
    files = enqueue_all(backup, phase, control); /* step 4 */
    if (files <= 0) {
        DestroyBackupInst(backup);
        return files != 0; /* nothing to do in this phase is no error */
    }
    if (Start(backup) == 0) { /* step 5 */
        while ((status = GetStatus(backup)) == BACKUP_INPROGRESS) nanosleep(&pause, NULL); /* step 6 */
    } else {
        fprintf(stderr, "%s\n", fsbackup_last_error());
    }
    GetStats(backup, &s);
    printf("%s: status %d, directories %" PRIu64 "/%" PRIu64 ", files %" PRIu64 "/%" PRIu64 ", bytes %" PRIu64 "/%" PRIu64
           ", failed %" PRIu64 "+%" PRIu64 "\n",
           names[phase], status, s.noOfDirCopied, s.noOfDirToBackup, s.noOfFilesCopied, s.noOfFilesToBackup, s.noOfBytesCopied,
           s.noOfBytesToBackup, s.noOfDirFailed, s.noOfFilesFailed);
    fsbackup_failures(backup, print_failure, NULL);
    if (status == BACKUP_FAILED) {
        char why[1024];
        if (fsbackup_message(backup, why, sizeof why) > 0) fprintf(stderr, "%s\n", why);
    }
    DestroyBackupInst(backup); /* step 7, whatever happened */
    return status != BACKUP_COMPLETED || s.noOfDirFailed + s.noOfFilesFailed > 0;
}

int main(int argc, char **argv) {
    int phase;
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: backup SOURCE DESTINATION META_DIR CONTROL_DIR [LOG_DIR]\n");
        return 2;
    }
    if (argc == 6) InitLog(argv[5], 1); /* step 1 */
    for (phase = BACKUP_PHASE_COPY; phase <= BACKUP_PHASE_DIR; phase++) {
        if (run_phase(argv[1], argv[2], argv[3], argv[4], phase) != 0) return 1;
    }
    return 0;
}
