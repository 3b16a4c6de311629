/*
 * libfsbackup: run the control files of an FS_Backup scan, on this host or on a
 * cluster. The first part is the C interface of FS_Backup, unchanged; the second
 * is what it lacks. docs/C-API.md is the reference. Valid in C99 and in C++11.
 */
#ifndef FSBACKUP_H
#define FSBACKUP_H

#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
#define FSBACKUP_ZERO = 0
extern "C" {
#else
#include <stdbool.h>
#define FSBACKUP_ZERO
#endif

#if defined(__GNUC__)
#define FSBACKUP_API __attribute__((visibility("default")))
#else
#define FSBACKUP_API
#endif

/* ---- The interface of FS_Backup ------------------------------------------ */

/* What an instance does, one kind of control file each; and its status. */
#ifdef __cplusplus
const int BACKUP_PHASE_COPY = 1;
const int BACKUP_PHASE_DELETE = 2;
const int BACKUP_PHASE_HARDLINK = 3;
const int BACKUP_PHASE_DIR = 4;

const int BACKUP_COMPLETED = 1;
const int BACKUP_INPROGRESS = 2;
const int BACKUP_FAILED = 3;
#else
enum {
    BACKUP_PHASE_COPY = 1,
    BACKUP_PHASE_DELETE = 2,
    BACKUP_PHASE_HARDLINK = 3,
    BACKUP_PHASE_DIR = 4
};

enum {
    BACKUP_COMPLETED = 1,
    BACKUP_INPROGRESS = 2,
    BACKUP_FAILED = 3
};
#endif

/* The layout never changes. What a figure means in each phase: docs/C-API.md. */
typedef struct BackupStats_S {
    uint64_t noOfDirToBackup FSBACKUP_ZERO;   /* directories to do */
    uint64_t noOfFilesToBackup FSBACKUP_ZERO; /* files to do: all that is no directory */
    uint64_t noOfBytesToBackup FSBACKUP_ZERO; /* bytes to do */
    uint64_t noOfDirCopied FSBACKUP_ZERO;     /* directories done */
    uint64_t noOfFilesCopied FSBACKUP_ZERO;   /* files done */
    uint64_t noOfBytesCopied FSBACKUP_ZERO;   /* bytes done */
    uint64_t noOfDirFailed FSBACKUP_ZERO;     /* directories that failed */
    uint64_t noOfFilesFailed FSBACKUP_ZERO;   /* files that failed */
    uint64_t backupspeed FSBACKUP_ZERO;       /* KiB per second */
} BackupStatistics;

/*
 * Logs to backup.log in the directory fullLogPath, which is made if missing.
 * Levels: 0 debug, 1 info, 2 warning, 3 error, 4 critical. May be called again.
 */
FSBACKUP_API void InitLog(const char *fullLogPath, int logLevel);

/*
 * Makes an instance that runs control files of one phase. The paths are
 * absolute; metaPath may be NULL for DELETE and DIR, which need no meta files.
 * Without writeMeta, data and default modes are all that is written.
 * Returns NULL on error.
 */
FSBACKUP_API void *CreateBackupInst(const char *source, const char *destination, const char *metaPath, int phase,
                                    bool writeMeta);

/* All that return int: 0 is success, -1 an error that fsbackup_last_error tells. */

/* Entries read and written at once, 1 or more each. Before Start. */
FSBACKUP_API int ConfigureThreadPool(void *backupHandle, int readThreadNum, int writeThreadNum);

/* Bytes of buffers; -1 is the default, 0 is refused. Before Start. */
FSBACKUP_API int ConfigureMemory(void *backupHandle, int maxMemory);

/* Adds a control file of the instance's phase, by its absolute path. Before Start. */
FSBACKUP_API int Enqueue(void *backupHandle, const char *backupControlFile);

/* Begins, and returns while the work goes on. Once per instance. */
FSBACKUP_API int Start(void *backupHandle);

/*
 * BACKUP_COMPLETED, BACKUP_INPROGRESS or BACKUP_FAILED. In progress from
 * CreateBackupInst on; failed only after a Start or a job that failed.
 */
FSBACKUP_API int GetStatus(void *backupHandle);

/* The figures as they are now. Before the files are read, what their headers announce. */
FSBACKUP_API void GetStats(void *backupHandle, BackupStatistics *backupStats);

/* Stops what still runs, within a second, and frees the instance. */
FSBACKUP_API void DestroyBackupInst(void *backupHandle);

/* ---- What it lacks -------------------------------------------------------- */

/* The library's version, such as "1.1.0". Never NULL; belongs to the library. */
FSBACKUP_API const char *fsbackup_version(void);

/* The commit that the library was built from. Never NULL; belongs to the library. */
FSBACKUP_API const char *fsbackup_commit(void);

/*
 * Why the last call that failed in this thread failed, on one line; "" if none
 * has. Valid until the thread's next call of the library.
 */
FSBACKUP_API const char *fsbackup_last_error(void);

/*
 * Sets an option by name and value, before Start. docs/C-API.md lists them; the
 * most asked for is "fail_on_entry_failures", "1".
 */
FSBACKUP_API int fsbackup_set_option(void *handle, const char *name, const char *value);

/*
 * Waits until the instance has ended or could not be started, at most timeout_ms milliseconds, without
 * limit if negative. Returns what GetStatus then returns.
 */
FSBACKUP_API int fsbackup_wait(void *handle, int timeout_ms);

/* Stops the work. The status becomes BACKUP_FAILED when nothing runs any more. */
FSBACKUP_API int fsbackup_cancel(void *handle);

/*
 * Writes into buffer, as snprintf does, why the instance failed or what keeps it
 * from going on; "" if there is nothing to say. Returns the text's length, -1 on
 * error.
 */
FSBACKUP_API int fsbackup_message(void *handle, char *buffer, size_t size);

/* The same with the id of the instance's job, under which a cluster shows it. */
FSBACKUP_API int fsbackup_job_id(void *handle, char *buffer, size_t size);

/* Set size to sizeof(fsbackup_stats); later releases append fields. */
typedef struct fsbackup_stats {
    uint64_t size;
    uint64_t dirs_to_backup, files_to_backup, bytes_to_backup; /* as in BackupStatistics */
    uint64_t dirs_copied, files_copied, bytes_copied;
    uint64_t dirs_failed, files_failed;
    uint64_t bytes_per_second;
    uint64_t milliseconds;          /* from start to end, or to now */
    uint64_t deleted;               /* delete lines whose target is gone */
    uint64_t links_made;            /* members of hard-link groups, without the first of each */
    uint64_t skipped;               /* lines that were not to be done */
    uint64_t dir_metadata_failed;   /* copied directories without owner, mode or times */
    uint64_t changed_while_read;    /* files read again because they changed */
    uint64_t changed_since_scan;    /* files copied as they are, not as they were scanned */
    uint64_t control_files;         /* enqueued */
    uint64_t control_files_refused; /* that could not be used */
    uint64_t shards_repeated;       /* parts of the work that were done more than once */
    uint64_t hole_bytes;            /* not copied because they are holes; measured */
    uint64_t reflink_bytes;         /* shared instead of copied; measured */
} fsbackup_stats;

FSBACKUP_API int fsbackup_get_stats(void *handle, fsbackup_stats *stats);

/* An entry, or with line 0 a control file, that could not be done. */
typedef struct fsbackup_failure {
    uint64_t size;            /* of this structure in the library that made it */
    const char *control_file; /* never NULL, as all strings here; "" = not known */
    uint64_t line;
    const char *path;      /* entry path without leading slash; raw bytes */
    const char *operation; /* what was being done */
    const char *kind;      /* stable word: not-found, denied, corrupt ... */
    const char *reason;    /* for people, on one line */
    int phase;             /* BACKUP_PHASE_..., or a larger number: directories were being finished */
    int error;             /* errno; 0 = none */
    int is_dir;
} fsbackup_failure;

/*
 * Calls callback with each failure that is known now, from this thread; what it
 * is given lives until it returns. It may call the library; a result other than
 * 0 ends the iteration. Returns the number of calls, -1 on error.
 */
typedef int (*fsbackup_failure_callback)(const fsbackup_failure *failure, void *user);
FSBACKUP_API int64_t fsbackup_failures(void *handle, fsbackup_failure_callback callback, void *user);

/* ---- Layout --------------------------------------------------------------- */

#if defined(__cplusplus)
#define FSBACKUP_ASSERT(name, holds) static_assert(holds, #name)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define FSBACKUP_ASSERT(name, holds) _Static_assert(holds, #name)
#else
#define FSBACKUP_ASSERT(name, holds) typedef char fsbackup_assert_##name[(holds) ? 1 : -1]
#endif

FSBACKUP_ASSERT(dir_to_backup, offsetof(BackupStatistics, noOfDirToBackup) == 0);
FSBACKUP_ASSERT(files_to_backup, offsetof(BackupStatistics, noOfFilesToBackup) == 8);
FSBACKUP_ASSERT(bytes_to_backup, offsetof(BackupStatistics, noOfBytesToBackup) == 16);
FSBACKUP_ASSERT(dir_copied, offsetof(BackupStatistics, noOfDirCopied) == 24);
FSBACKUP_ASSERT(files_copied, offsetof(BackupStatistics, noOfFilesCopied) == 32);
FSBACKUP_ASSERT(bytes_copied, offsetof(BackupStatistics, noOfBytesCopied) == 40);
FSBACKUP_ASSERT(dir_failed, offsetof(BackupStatistics, noOfDirFailed) == 48);
FSBACKUP_ASSERT(files_failed, offsetof(BackupStatistics, noOfFilesFailed) == 56);
FSBACKUP_ASSERT(backupspeed, offsetof(BackupStatistics, backupspeed) == 64);
FSBACKUP_ASSERT(whole, sizeof(BackupStatistics) == 72);

#undef FSBACKUP_ASSERT
#undef FSBACKUP_ZERO

#ifdef __cplusplus
}
#endif

#endif /* FSBACKUP_H */
