// The program of backup.c in C++11: the phases of a scan, one instance each.
//
//     c++ -std=c++11 -o backup backup.cc -lfsbackup
//     ./backup /srv/data /backup/data /tmp/scan/meta/latest /tmp/scan/ctrl/*
#include <fsbackup.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Destroy {
    void operator()(void *backup) const { DestroyBackupInst(backup); }
};
using Instance = std::unique_ptr<void, Destroy>;

// What the library says of the last failed call.
std::runtime_error last_error() { return std::runtime_error(fsbackup_last_error()); }

int phase_of(const std::string &path) {
    const std::string name = path.substr(path.rfind('/') + 1);
    if (name.compare(0, 8, "control_") == 0) return BACKUP_PHASE_COPY;
    if (name.compare(0, 7, "delete_") == 0) return BACKUP_PHASE_DELETE;
    if (name.compare(0, 9, "hardlink_") == 0) return BACKUP_PHASE_HARDLINK;
    if (name.compare(0, 6, "mtime_") == 0) return BACKUP_PHASE_DIR;
    return 0;
}

const char *name_of(int phase) {
    switch (phase) {
    case BACKUP_PHASE_COPY:
        return "copy";
    case BACKUP_PHASE_DELETE:
        return "delete";
    case BACKUP_PHASE_HARDLINK:
        return "hardlink";
    case BACKUP_PHASE_DIR:
        return "dir";
    default:
        return "?";
    }
}

// Returns whether the phase completed without failed entries.
bool run(const std::string &source, const std::string &destination, const std::string &meta, int phase,
         const std::vector<std::string> &files) {
    Instance backup(CreateBackupInst(source.c_str(), destination.c_str(), meta.c_str(), phase, true));
    if (!backup) throw last_error();
    if (ConfigureThreadPool(backup.get(), 8, 8) != 0) throw last_error();
    if (ConfigureMemory(backup.get(), -1) != 0) throw last_error();
    for (const auto &file : files) {
        if (Enqueue(backup.get(), file.c_str()) != 0) throw last_error();
    }
    if (Start(backup.get()) != 0) throw last_error();
    int status;
    while ((status = GetStatus(backup.get())) == BACKUP_INPROGRESS) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    BackupStatistics s; // zeros
    GetStats(backup.get(), &s);
    std::cout << name_of(phase) << ": status " << status << ", directories " << s.noOfDirCopied << "/" << s.noOfDirToBackup
              << ", files " << s.noOfFilesCopied << "/" << s.noOfFilesToBackup << ", bytes " << s.noOfBytesCopied << "/"
              << s.noOfBytesToBackup << ", failed " << s.noOfDirFailed << "+" << s.noOfFilesFailed << std::endl;
    fsbackup_failures(
        backup.get(),
        [](const fsbackup_failure *f, void *) {
            std::cerr << f->control_file << ":" << f->line << ": " << f->reason << std::endl;
            return 0;
        },
        nullptr);
    return status == BACKUP_COMPLETED && s.noOfDirFailed + s.noOfFilesFailed == 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 5) {
        std::cerr << "usage: backup SOURCE DESTINATION META_DIR CONTROL_FILE..." << std::endl;
        return 2;
    }
    std::vector<std::string> files[BACKUP_PHASE_DIR + 1];
    for (int i = 4; i < argc; i++) files[phase_of(argv[i])].push_back(argv[i]);
    try {
        for (int phase = BACKUP_PHASE_COPY; phase <= BACKUP_PHASE_DIR; phase++) {
            if (!files[phase].empty() && !run(argv[1], argv[2], argv[3], phase, files[phase])) return 1;
        }
    } catch (const std::exception &e) {
        std::cerr << e.what() << std::endl;
        return 1;
    }
    return 0;
}
