/* A host that ends by _exit while its instance runs, or lets it end: exits SRC DST META COPY now|ended */
#include "check.h"

int main(int argc, char **argv) {
    void *b;
    CHECK(argc == 6);
    b = CreateBackupInst(argv[1], argv[2], argv[3], BACKUP_PHASE_COPY, true);
    CHECK(b != NULL && Enqueue(b, argv[4]) == 0);
    if (Start(b) != 0) {
        fprintf(stderr, "%s\n", fsbackup_last_error());
        _exit(GetStatus(b) == BACKUP_FAILED ? 7 : 8);
    }
    if (strcmp(argv[5], "ended") == 0) CHECK(ended(b) == BACKUP_COMPLETED);
    _exit(0);
}
