package main

/*
#include <stdlib.h>
#include "bridge.h"
*/
import "C"

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// errorSize is the size of the buffers for errors.
const errorSize = C.BRIDGE_ERROR

// say writes an error into the caller's buffer, on one line.
func say(buf *C.char, err error) {
	put(buf, errorSize, oneLine(err.Error()))
}

func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

// put copies s into a buffer of n bytes and ends it with a zero byte.
func put(buf *C.char, n int, s string) {
	if buf == nil || n <= 0 {
		return
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(buf)), n)
	b[copy(b[:n-1], s)] = 0
}

// text returns a C string; ok is false for NULL.
func text(p *C.char) (s string, ok bool) {
	if p == nil {
		return "", false
	}
	return C.GoString(p), true
}

// guard runs f and turns its error, or a panic, which must not end the caller's
// process, into -1.
func guard(op string, errText *C.char, f func() error) (result C.int) {
	defer func() {
		if r := recover(); r != nil {
			err := fault.New(fault.Internal, "%s: panic: %v", op, r)
			process.log.Error("panic", "operation", op, "error", err, "stack", string(debug.Stack()))
			say(errText, err)
			result = -1
		}
	}()
	if err := f(); err != nil {
		process.log.Error("call failed", "function", op, "error", oneLine(err.Error()))
		say(errText, err)
		return -1
	}
	return 0
}

// with is guard for the functions that have a handle.
func with(op string, h C.uintptr_t, errText *C.char, f func(*instance) error) C.int {
	return guard(op, errText, func() error {
		i, err := process.find(uint64(h))
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		if err := f(i); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		return nil
	})
}

//export bridgeInitLog
func bridgeInitLog(dir *C.char, level C.int, errText *C.char) {
	guard("InitLog", errText, func() error {
		d, ok := text(dir)
		if !ok || d == "" {
			return fault.New(fault.Invalid, "InitLog: the log directory is missing")
		}
		return process.initLog(d, int(level))
	})
}

//export bridgeCreate
func bridgeCreate(source, destination, meta *C.char, phase C.int, writeMeta C.int, errText *C.char) C.uintptr_t {
	var id uint64
	guard("CreateBackupInst", errText, func() error {
		src, _ := text(source)
		dst, _ := text(destination)
		m, ok := text(meta)
		if !ok && needsMeta(protocol.Phase(phase)) {
			return fmt.Errorf("CreateBackupInst: %w", errNoMeta)
		}
		var err error
		if id, err = process.create(src, dst, m, int(phase), writeMeta != 0); err != nil {
			return fmt.Errorf("CreateBackupInst: %w", err)
		}
		return nil
	})
	return C.uintptr_t(id)
}

//export bridgeThreads
func bridgeThreads(h C.uintptr_t, read, write C.int, errText *C.char) C.int {
	return with("ConfigureThreadPool", h, errText, func(i *instance) error { return i.threads(int(read), int(write)) })
}

//export bridgeMemory
func bridgeMemory(h C.uintptr_t, bytes C.int, errText *C.char) C.int {
	return with("ConfigureMemory", h, errText, func(i *instance) error { return i.memory(int(bytes)) })
}

//export bridgeEnqueue
func bridgeEnqueue(h C.uintptr_t, path *C.char, errText *C.char) C.int {
	return with("Enqueue", h, errText, func(i *instance) error {
		p, _ := text(path)
		return i.enqueue(p)
	})
}

//export bridgeSetOption
func bridgeSetOption(h C.uintptr_t, name, value *C.char, errText *C.char) C.int {
	return with("fsbackup_set_option", h, errText, func(i *instance) error {
		n, okN := text(name)
		v, okV := text(value)
		if !okN || !okV {
			return fault.New(fault.Invalid, "name or value is NULL")
		}
		return i.setOption(n, v)
	})
}

//export bridgeStart
func bridgeStart(h C.uintptr_t, c *C.bridge_cluster, errText *C.char) C.int {
	env := func(p *C.char) string { s, _ := text(p); return s }
	to := cluster{url: env(c.url), creds: env(c.creds), nkey: env(c.nkey), ca: env(c.ca), cert: env(c.cert), key: env(c.key)}
	from := environment{cluster: to, pool: env(c.pool), tmpdir: env(c.tmpdir)}
	return with("Start", h, errText, func(i *instance) error { return i.start(context.Background(), from) })
}

//export bridgeStatus
func bridgeStatus(h C.uintptr_t, errText *C.char) C.int {
	status := failed
	with("GetStatus", h, errText, func(i *instance) error {
		status = i.status()
		return nil
	})
	return C.int(status)
}

//export bridgeWait
func bridgeWait(h C.uintptr_t, ms C.int, errText *C.char) C.int {
	status := failed
	with("fsbackup_wait", h, errText, func(i *instance) error {
		i.wait(time.Duration(ms) * time.Millisecond)
		status = i.status()
		return nil
	})
	return C.int(status)
}

//export bridgeStats
func bridgeStats(h C.uintptr_t, out *C.fsbackup_stats, errText *C.char) C.int {
	return with("GetStats", h, errText, func(i *instance) error {
		f := i.figures()
		s := f.Stats
		*out = C.fsbackup_stats{
			dirs_to_backup: C.uint64_t(s.DirsToBackup), files_to_backup: C.uint64_t(s.FilesToBackup), bytes_to_backup: C.uint64_t(s.BytesToBackup),
			dirs_copied: C.uint64_t(s.DirsCopied), files_copied: C.uint64_t(s.FilesCopied), bytes_copied: C.uint64_t(s.BytesCopied),
			dirs_failed: C.uint64_t(s.DirsFailed), files_failed: C.uint64_t(s.FilesFailed), bytes_per_second: C.uint64_t(s.BytesPerSec),
			milliseconds: C.uint64_t(f.elapsed.Milliseconds()), deleted: C.uint64_t(s.Deleted), links_made: C.uint64_t(s.Links), skipped: C.uint64_t(s.Skipped),
			dir_metadata_failed: C.uint64_t(s.DirMetaFailed), changed_while_read: C.uint64_t(s.ChangedWhileRead), changed_since_scan: C.uint64_t(s.ChangedSinceScan),
			control_files: C.uint64_t(f.files), control_files_refused: C.uint64_t(s.FilesRefused), shards_repeated: C.uint64_t(s.ShardsRepeated),
			hole_bytes: C.uint64_t(s.HoleBytes), reflink_bytes: C.uint64_t(s.ReflinkBytes),
		}
		return nil
	})
}

//export bridgeDestroy
func bridgeDestroy(h C.uintptr_t, errText *C.char) {
	guard("DestroyBackupInst", errText, func() error {
		if err := process.destroy(context.Background(), uint64(h)); err != nil {
			return fmt.Errorf("DestroyBackupInst: %w", err)
		}
		return nil
	})
}

//export bridgeCancel
func bridgeCancel(h C.uintptr_t, errText *C.char) C.int {
	return with("fsbackup_cancel", h, errText, func(i *instance) error { return i.cancel(context.Background()) })
}

//export bridgeMessage
func bridgeMessage(h C.uintptr_t, buf *C.char, size C.size_t, errText *C.char) C.int {
	return snprintf("fsbackup_message", h, buf, size, errText, (*instance).message)
}

//export bridgeJobID
func bridgeJobID(h C.uintptr_t, buf *C.char, size C.size_t, errText *C.char) C.int {
	return snprintf("fsbackup_job_id", h, buf, size, errText, (*instance).jobID)
}

func snprintf(op string, h C.uintptr_t, buf *C.char, size C.size_t, errText *C.char, of func(*instance) string) C.int {
	n := 0
	if with(op, h, errText, func(i *instance) error {
		s := oneLine(of(i))
		n = len(s)
		put(buf, int(min(size, 1<<20)), s)
		return nil
	}) != 0 {
		return -1
	}
	return C.int(n)
}

//export bridgeVersion
func bridgeVersion(buf *C.char, size C.size_t) { put(buf, int(size), libVersion) }

//export bridgeCommit
func bridgeCommit(buf *C.char, size C.size_t) { put(buf, int(size), version) }

//export bridgeFailures
func bridgeFailures(h C.uintptr_t, page *C.bridge_page, errText *C.char) C.int {
	page.count, page.items = 0, nil
	return with("fsbackup_failures", h, errText, func(i *instance) error {
		r, err := i.failures(context.Background(), C.GoString(&page.next[0]))
		if err != nil {
			return err
		}
		put(&page.next[0], len(page.next), r.Next)
		if len(r.Failures) == 0 {
			return nil
		}
		page.items = (*C.fsbackup_failure)(C.calloc(C.size_t(len(r.Failures)), C.sizeof_fsbackup_failure))
		if page.items == nil {
			return fault.New(fault.Transient, "out of memory")
		}
		page.count = C.size_t(len(r.Failures))
		items := unsafe.Slice(page.items, len(r.Failures))
		for k := range r.Failures {
			items[k] = failureToC(&r.Failures[k])
		}
		return nil
	})
}

// failureToC gives the strings to C, which frees them.
func failureToC(v *protocol.FailureView) C.fsbackup_failure {
	c := C.fsbackup_failure{
		size: C.sizeof_fsbackup_failure, control_file: C.CString(v.ControlFile), line: C.uint64_t(v.Line), path: C.CString(v.Path),
		operation: C.CString(v.Op), kind: C.CString(v.Kind), reason: C.CString(oneLine(v.Reason)), phase: C.int(v.Phase), error: C.int(v.Errno),
	}
	if v.IsDir {
		c.is_dir = 1
	}
	return c
}
