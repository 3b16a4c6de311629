package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

const (
	logName  = "backup.log"
	logBytes = 10 << 20 // a file that has reached this is put aside
	logKept  = 5        // as backup.log.1, the newest, to backup.log.5
)

// levelOff is above every level that is logged at.
const levelOff = slog.Level(100)

// levels are the interface's, 0 to 4.
var levels = [...]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError, slog.LevelError + 4}

// logFile is a log file that is put aside when it is full. Several processes may
// write to one. Without a directory it takes everything and keeps nothing.
type logFile struct {
	most int64
	keep int

	mu   sync.Mutex // guards what follows
	path string
	file *os.File
	size int64
}

// open goes over to backup.log in dir, which is made if missing.
func (l *logFile) open(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "make log directory", Path: dir, Err: errors.Unwrap(err)}
	}
	path := filepath.Join(dir, logName)
	f, size, err := openLog(path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close() // every line was written at once
	}
	l.path, l.file, l.size = path, f, size
	return nil
}

func openLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err == nil {
		var fi os.FileInfo
		if fi, err = f.Stat(); err == nil && !fi.Mode().IsRegular() {
			err = errors.New("it is not a regular file")
		}
		if err == nil {
			return f, fi.Size(), nil
		}
		_ = f.Close() // nothing was written
	}
	return nil, 0, &fault.Error{Kind: fault.KindOf(err), Op: "open log file", Path: path, Err: err, Hint: "name a directory that can be written with InitLog"}
}

// Write appends one line. An error loses the line: there is nobody to tell.
func (l *logFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return len(line), nil
	}
	if l.size+int64(len(line)) > l.most {
		l.rotate()
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write log: %w", err)
	}
	return n, nil
}

// rotate puts the file aside, unless another process has done so, and opens a
// new one. Where that fails the old one is written on.
func (l *logFile) rotate() {
	mine, err := l.file.Stat()
	if err != nil {
		return
	}
	if named, err := os.Stat(l.path); err == nil && os.SameFile(mine, named) {
		for i := l.keep - 1; i >= 0; i-- {
			from := l.path
			if i > 0 {
				from = fmt.Sprintf("%s.%d", l.path, i)
			}
			_ = os.Rename(from, fmt.Sprintf("%s.%d", l.path, i+1)) // one that is missing leaves a gap
		}
	}
	f, size, err := openLog(l.path)
	if err != nil {
		l.size = 0 // try again after as much
		return
	}
	_ = l.file.Close() // every line was written at once
	l.file, l.size = f, size
}
