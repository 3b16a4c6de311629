#!/usr/bin/env python3
"""Run the control files of a scan through libfsbackup, as a plug-in does.

    backup.py SOURCE DESTINATION META CTRL [LIBRARY] [SECONDS_BETWEEN_POLLS]

One instance runs each control file, and one all mtime files. A second thread
polls the status while the first enqueues and starts. Nothing is destroyed: the
process may end by os._exit, and the next Start sweeps what it leaves.
"""

import ctypes
import os
import sys
import threading
import time

COPY, DELETE, HARDLINK, DIR = 1, 2, 3, 4
COMPLETED, IN_PROGRESS, FAILED = 1, 2, 3


class Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "dirs_to_backup", "files_to_backup", "bytes_to_backup",
        "dirs_copied", "files_copied", "bytes_copied",
        "dirs_failed", "files_failed", "speed")]


def load(path):
    """Loads the library and says what its functions take: handles are pointers."""
    lib = ctypes.CDLL(path)
    text, handle = ctypes.c_char_p, ctypes.c_void_p
    lib.CreateBackupInst.restype = handle
    lib.CreateBackupInst.argtypes = [text, text, text, ctypes.c_int, ctypes.c_bool]
    lib.ConfigureThreadPool.argtypes = [handle, ctypes.c_int, ctypes.c_int]
    lib.ConfigureMemory.argtypes = [handle, ctypes.c_int]
    lib.Enqueue.argtypes = [handle, text]
    lib.Start.argtypes = [handle]
    lib.GetStatus.argtypes = [handle]
    lib.GetStats.argtypes = [handle, ctypes.POINTER(Statistics)]
    lib.GetStats.restype = None
    lib.fsbackup_last_error.restype = text
    lib.fsbackup_message.argtypes = [handle, text, ctypes.c_size_t]
    return lib


def message(lib, handle):
    buffer = ctypes.create_string_buffer(2048)
    lib.fsbackup_message(handle, buffer, len(buffer))
    return buffer.value.decode(errors="replace")


def run(lib, source, destination, meta, phase, files, pause):
    """Runs control files of one phase; returns (status, statistics, message)."""
    # Paths are bytes: os.fsencode gives back exactly what the system gave us.
    handle = lib.CreateBackupInst(os.fsencode(source), os.fsencode(destination), os.fsencode(meta), phase, True)
    if not handle:
        raise RuntimeError(lib.fsbackup_last_error().decode(errors="replace"))
    seen = []

    def poll():
        while True:
            status = lib.GetStatus(handle)
            if status != IN_PROGRESS:
                seen.append(status)
                return
            if pause:
                time.sleep(pause)

    poller = threading.Thread(target=poll)
    poller.start()
    lib.ConfigureThreadPool(handle, 256, 256)
    lib.ConfigureMemory(handle, 100 << 20)
    for file in files:
        if lib.Enqueue(handle, os.fsencode(file)) != 0:
            print(lib.fsbackup_last_error().decode(errors="replace"), file=sys.stderr)
    lib.Start(handle)  # if it fails, the poller sees 3
    poller.join()
    statistics = Statistics()
    lib.GetStats(handle, ctypes.byref(statistics))
    return seen[0], statistics, message(lib, handle)


def main(source, destination, meta, ctrl, library="libBackup.so", pause="0.001"):
    lib = load(library)
    names = {COPY: "control_", DELETE: "delete_control_", HARDLINK: "hardlink_control_", DIR: "mtime_"}
    ok = True
    for phase in (COPY, DELETE, HARDLINK, DIR):
        files = sorted(os.path.join(ctrl, f) for f in os.listdir(ctrl) if f.startswith(names[phase]))
        for batch in ([files] if phase == DIR else [[f] for f in files]):
            if not batch:
                continue
            status, s, why = run(lib, source, destination, meta, phase, batch, float(pause))
            print(f"phase {phase}: status {status}, directories {s.dirs_copied}/{s.dirs_to_backup}, "
                  f"files {s.files_copied}/{s.files_to_backup}, failed {s.dirs_failed}+{s.files_failed} {why}".rstrip())
            ok = ok and status == COMPLETED
    return 0 if ok else 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
