/*
 * libfsbackup for C++11 and later: a thin layer over fsbackup.h, in this header alone.
 *
 *     fsbackup::instance copy("/srv/data", "/backup/data", "/scan/meta/latest", fsbackup::phase::copy);
 *     copy.enqueue("/scan/ctrl/control_0_0123456789abcdef.txt").start();
 *     if (copy.wait() != fsbackup::status::completed) std::cerr << copy.message() << "\n";
 *
 * What fails throws fsbackup::error. Functions that take std::nothrow return false
 * instead; fsbackup::last_error() then says why. An instance may be used from many
 * threads at once, but for moving and destroying it. docs/C-API.md says what each
 * function does.
 */
#ifndef FSBACKUP_HPP
#define FSBACKUP_HPP

#include <chrono>
#include <climits>
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fsbackup.h"

namespace fsbackup {

/* What an instance does: one kind of control files each. */
enum class phase {
    copy = BACKUP_PHASE_COPY,
    del = BACKUP_PHASE_DELETE,
    hardlink = BACKUP_PHASE_HARDLINK,
    dir = BACKUP_PHASE_DIR
};

enum class status { completed = BACKUP_COMPLETED, in_progress = BACKUP_INPROGRESS, failed = BACKUP_FAILED };

/* What is thrown. what() is one line. */
class error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/* Why the last call of this thread that failed did. */
inline std::string last_error() { return fsbackup_last_error(); }

inline std::string version() { return fsbackup_version(); }

/* An entry, or with line 0 a control file, that could not be done. */
struct failure {
    std::string control_file;
    std::uint64_t line;
    std::string path; /* raw bytes */
    std::string operation, kind, reason;
    int phase; /* a number, since later releases may have more */
    int error; /* errno; 0 = none */
    bool is_dir;
};

namespace detail {

inline void check(int result) {
    if (result < 0) throw error(fsbackup_last_error());
}

/* Reads a text by a function that works as snprintf does. */
template <typename F>
std::string text(F read) {
    std::vector<char> buffer(256);
    for (;;) { /* it may grow between two calls */
        int n = read(buffer.data(), buffer.size());
        check(n);
        if (static_cast<std::size_t>(n) < buffer.size()) return std::string(buffer.data(), static_cast<std::size_t>(n));
        buffer.resize(static_cast<std::size_t>(n) + 1);
    }
}

/* Carries a callback, and what it throws, through C. */
template <typename F>
struct visitor {
    F &visit;
    std::exception_ptr thrown;

    static int call(const fsbackup_failure *f, void *user) {
        visitor *self = static_cast<visitor *>(user);
        try {
            return self->visit(failure{f->control_file, f->line, f->path, f->operation, f->kind, f->reason, f->phase, f->error, f->is_dir != 0}) ? 0 : 1;
        } catch (...) {
            self->thrown = std::current_exception();
            return 1;
        }
    }
};

} // namespace detail

/* One CreateBackupInst. It owns the handle: its end stops what still runs. */
class instance {
public:
    /* meta may be empty for del and dir. */
    instance(const std::string &source, const std::string &destination, const std::string &meta, phase p, bool write_meta = true)
        : handle_(CreateBackupInst(source.c_str(), destination.c_str(), meta.c_str(), static_cast<int>(p), write_meta)) {
        if (handle_ == nullptr) throw error(fsbackup_last_error());
    }
    ~instance() { DestroyBackupInst(handle_); }

    instance(instance &&other) noexcept : handle_(other.release()) {}
    instance &operator=(instance &&other) noexcept {
        if (this != &other) {
            DestroyBackupInst(handle_);
            handle_ = other.release();
        }
        return *this;
    }
    instance(const instance &) = delete;
    instance &operator=(const instance &) = delete;

    /* Before start. */
    instance &threads(int read, int write) { return done(ConfigureThreadPool(handle_, read, write)); }
    instance &memory(int bytes) { return done(ConfigureMemory(handle_, bytes)); }
    instance &option(const std::string &name, const std::string &value) {
        return done(fsbackup_set_option(handle_, name.c_str(), value.c_str()));
    }
    instance &enqueue(const std::string &control_file) { return done(Enqueue(handle_, control_file.c_str())); }
    bool enqueue(const std::string &control_file, std::nothrow_t) noexcept { return Enqueue(handle_, control_file.c_str()) == 0; }

    /* Begins, and returns while the work goes on. */
    instance &start() { return done(Start(handle_)); }
    bool start(std::nothrow_t) noexcept { return Start(handle_) == 0; }

    status state() const noexcept { return static_cast<status>(GetStatus(handle_)); }

    /* Waits until it has ended or could not be started. */
    status wait() const noexcept { return static_cast<status>(fsbackup_wait(handle_, -1)); }
    /* The same, for so long at most. */
    template <typename Rep, typename Period>
    status wait_for(std::chrono::duration<Rep, Period> most) const {
        auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(most).count();
        return static_cast<status>(fsbackup_wait(handle_, ms < 0 ? 0 : ms > INT_MAX ? INT_MAX : static_cast<int>(ms)));
    }

    /* Stops the work; wait for the state. */
    instance &cancel() { return done(fsbackup_cancel(handle_)); }
    bool cancel(std::nothrow_t) noexcept { return fsbackup_cancel(handle_) == 0; }

    /* Why it failed, or what keeps it from going on; empty if there is nothing to say. */
    std::string message() const {
        void *h = handle_;
        return detail::text([h](char *buffer, std::size_t size) { return fsbackup_message(h, buffer, size); });
    }
    std::string job_id() const {
        void *h = handle_;
        return detail::text([h](char *buffer, std::size_t size) { return fsbackup_job_id(h, buffer, size); });
    }

    fsbackup_stats stats() const {
        fsbackup_stats s = fsbackup_stats();
        s.size = sizeof s;
        detail::check(fsbackup_get_stats(handle_, &s));
        return s;
    }
    /* The nine figures of FS_Backup. */
    BackupStatistics figures() const {
        BackupStatistics s;
        GetStats(handle_, &s);
        return s;
    }

    /* Calls visit(const failure &) with each failure known now, while it returns true. */
    template <typename F>
    void each_failure(F visit) const {
        detail::visitor<F> v{visit, nullptr};
        std::int64_t n = fsbackup_failures(handle_, &detail::visitor<F>::call, &v);
        if (v.thrown) std::rethrow_exception(v.thrown);
        detail::check(n < 0 ? -1 : 0);
    }
    /* The first failures, at most so many. */
    std::vector<failure> failures(std::size_t most = 1000) const {
        std::vector<failure> out;
        if (most > 0)
            each_failure([&](const failure &f) {
                out.push_back(f);
                return out.size() < most;
            });
        return out;
    }

    /* The handle, for the functions of fsbackup.h. */
    void *handle() const noexcept { return handle_; }
    /* Gives the handle up: the caller destroys it. */
    void *release() noexcept {
        void *h = handle_;
        handle_ = nullptr;
        return h;
    }

private:
    instance &done(int result) {
        detail::check(result);
        return *this;
    }

    void *handle_;
};

} // namespace fsbackup

#endif /* FSBACKUP_HPP */
