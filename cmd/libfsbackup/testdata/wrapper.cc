// All of fsbackup.hpp: wrapper SRC DST META COPY
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "fsbackup.hpp"

#define CHECK(x)                                                              \
    do {                                                                      \
        if (!(x)) {                                                           \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, fsbackup_last_error()); \
            std::exit(1);                                                     \
        }                                                                     \
    } while (0)

using fsbackup::instance;
using fsbackup::phase;
using fsbackup::status;

// Whether f throws an error that says something.
template <typename F>
static bool throws(F f, const char *says) {
    try {
        f();
    } catch (const fsbackup::error &e) {
        return std::string(e.what()).find(says) != std::string::npos;
    }
    return false;
}

int main(int, char **argv) {
    const std::string src = argv[1], dst = argv[2], meta = argv[3], copy = argv[4];
    CHECK(!fsbackup::version().empty());
    CHECK(throws([&] { instance("relative", dst, meta, phase::copy); }, "absolute"));
    CHECK(throws([&] { instance(src, dst, meta, static_cast<phase>(9)); }, "phase"));

    instance one(src, dst, meta, phase::copy);
    CHECK(one.state() == status::in_progress);
    CHECK(throws([&] { one.enqueue("relative"); }, "not absolute"));
    CHECK(!one.enqueue("relative", std::nothrow) && fsbackup::last_error().find("not absolute") != std::string::npos);
    CHECK(throws([&] { one.option("nonsense", "1"); }, "no option"));
    CHECK(throws([&] { one.threads(0, 1); }, "at least 1"));
    CHECK(throws([&] { one.memory(0); }, "0 bytes"));
    CHECK(throws([&] { one.start(); }, "no control file"));
    CHECK(one.state() == status::failed && one.message().find("no control file") != std::string::npos);
    one.threads(4, 4).memory(1 << 20).option("fail_on_entry_failures", "1").option("sync", "none").enqueue(copy).start();
    instance two(std::move(one)); // it goes on
    CHECK(one.handle() == nullptr && !one.start(std::nothrow));
    CHECK(two.wait_for(std::chrono::minutes(2)) == status::failed); // two files are gone
    CHECK(two.message().find("2 files failed") != std::string::npos && two.job_id().size() == 26);
    fsbackup_stats all = two.stats();
    BackupStatistics nine = two.figures();
    CHECK(all.files_failed == 2 && nine.noOfFilesFailed == 2 && nine.noOfFilesCopied == all.files_copied && all.files_copied > 0);
    CHECK(two.failures().size() == 2 && two.failures(1).size() == 1 && two.failures(0).empty());
    CHECK(two.failures()[0].kind == "not-found" && two.failures()[0].path.compare(0, 4, "gone") == 0 && two.failures()[0].line > 0);
    int seen = 0;
    try {
        two.each_failure([&](const fsbackup::failure &) -> bool {
            ++seen;
            throw std::string("mine");
        });
        CHECK(false);
    } catch (const std::string &mine) {
        CHECK(mine == "mine" && seen == 1);
    }

    // Polled from another thread while it is enqueued and started; then cancelled.
    instance three(src, dst + "3", meta, phase::copy);
    bool early = false;
    std::thread poll([&] {
        while (three.state() == status::in_progress) std::this_thread::yield();
        early = three.job_id().empty();
    });
    three.enqueue(copy).start().cancel();
    CHECK(three.cancel(std::nothrow));
    CHECK(three.wait() != status::in_progress);
    poll.join();
    CHECK(!early);
    two = std::move(three); // destroys what it was
    CHECK(two.wait_for(std::chrono::seconds(-1)) != status::in_progress);
    DestroyBackupInst(two.release());
    CHECK(throws([&] { two.stats(); }, "NULL"));
    std::puts("ok");
    return 0;
}
