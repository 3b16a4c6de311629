/* Paths of any bytes: bytes LOG SOURCE DESTINATION META MISSING PHASE:CONTROL ... Each
 * control file is one instance. MISSING is the entry that fails, "" for none. */
#include "check.h"

static const char *missing;
static int named;

static int look(const fsbackup_failure *failure, void *user) {
    CHECK(strcmp(failure->path, missing) == 0);
    CHECK(strcmp(failure->control_file, user) == 0);
    named++;
    return 0;
}

int main(int argc, char **argv) {
    uint64_t failed = 0;
    int i;
    CHECK(argc > 6);
    InitLog(argv[1], 0);
    missing = argv[5];
    for (i = 6; i < argc; i++) {
        char *control = strchr(argv[i], ':') + 1, *of = argv[4];
        fsbackup_stats s = {.size = sizeof s};
        int phase = atoi(argv[i]);
        void *b = CreateBackupInst(argv[2], argv[3], of, phase, true);
        CHECK(b != NULL);
        CHECK(Enqueue(b, control) == 0);
        CHECK(Start(b) == 0);
        CHECK(ended(b) == BACKUP_COMPLETED);
        CHECK(fsbackup_get_stats(b, &s) == 0);
        failed += s.files_failed;
        CHECK(fsbackup_failures(b, look, control) >= 0);
        DestroyBackupInst(b);
    }
    CHECK(named == (*missing != 0) && failed == (uint64_t)named);
    puts("done");
    return 0;
}
