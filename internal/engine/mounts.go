package engine

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Mount is a mount point beneath a root, as paths see it: what lies hidden under
// another mount is none.
type Mount struct {
	Path  string // relative to the root
	FS    string // type of its file system
	Inode uint64 // of its root directory; 0 = not known
	// Auto is set for an automounter's layer. What is mounted on it comes and goes
	// with its use.
	Auto bool
	// Line is the mount's own in the kernel's table: that of one that was made anew
	// differs.
	Line string
}

// MountTable reads the mount table of the process.
type MountTable interface {
	// Read returns the table in the form of /proc/self/mountinfo, and a number that is
	// another one once anything was mounted or unmounted since.
	Read() (table []byte, generation uint64, err error)
	Close() error
}

// procMounts is the kernel's table. It is read again only if the kernel says that it
// has changed.
type procMounts struct {
	mu         sync.Mutex
	fd         int // valid if opened. No os.File: the runtime's poller would swallow the changes
	opened     bool
	table      []byte
	generation uint64
}

// Read implements MountTable.
func (p *procMounts) Read() ([]byte, uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.opened {
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("open /proc/self/mountinfo: %w", err)
		}
		p.fd, p.opened = fd, true
	}
	// What changes while it is read is seen by the next look.
	for look := p.generation == 0 || p.changed(); look; look = p.changed() {
		table, err := p.readAll()
		if err != nil {
			return nil, 0, fmt.Errorf("read /proc/self/mountinfo: %w", err)
		}
		p.table = table
		p.generation++
	}
	return p.table, p.generation, nil
}

func (p *procMounts) readAll() ([]byte, error) {
	if _, err := unix.Seek(p.fd, 0, unix.SEEK_SET); err != nil {
		return nil, err //nolint:wrapcheck // by the caller
	}
	var table []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(p.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return table, err //nolint:wrapcheck // by the caller
		}
		table = append(table, buf[:n]...)
	}
}

// changed reports whether anything was mounted or unmounted since it was last asked,
// or since the table was opened. The kernel says so once.
func (p *procMounts) changed() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLPRI}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0 && fds[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0
	}
}

// Close implements MountTable.
func (p *procMounts) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.opened {
		return nil
	}
	p.opened, p.generation = false, 0
	return fsys.Close(p.fd)
}

// tableRow is a line of a mount table.
type tableRow struct {
	id, parent int
	at         string // absolute
	fs         string
	line       string
}

// parseMounts reads a table. Lines that nobody can read are left out: kernels only
// ever add fields.
func parseMounts(table []byte) []tableRow {
	var out []tableRow
	for line := range bytes.Lines(table) {
		text := strings.TrimSuffix(string(line), "\n")
		before, after, ok := strings.Cut(text, " - ")
		f := strings.Split(before, " ") // not at what Unicode calls a space: a path may have it
		kind, _, _ := strings.Cut(after, " ")
		if !ok || len(f) < 5 || kind == "" {
			continue
		}
		id, err1 := strconv.Atoi(f[0])
		parent, err2 := strconv.Atoi(f[1])
		if err1 != nil || err2 != nil {
			continue
		}
		if kind == "nfs4" { // the same export may be mounted with another version elsewhere
			kind = "nfs"
		}
		out = append(out, tableRow{id, parent, unescape(f[4]), kind, text})
	}
	return out
}

// unescape undoes what the kernel does to blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// visible leaves out what no path leads to: mounts on something that another mount
// covers, and all but the topmost at one place. An automounter's layer stays, also
// where something is mounted on it.
func visible(rows []tableRow) []tableRow {
	known := make(map[int]bool, len(rows))
	for _, r := range rows {
		known[r.id] = true
	}
	const outside = -1 // of the process's root: the parent of the topmost
	children := map[int][]tableRow{}
	for _, r := range rows {
		if r.parent == r.id || !known[r.parent] {
			r.parent = outside
		}
		children[r.parent] = append(children[r.parent], r)
	}
	var out []tableRow
	var visit func(parent int)
	visit = func(parent int) {
		list := children[parent]
		delete(children, parent) // no table has a circle, and none is followed
		slices.SortStableFunc(list, func(a, b tableRow) int { return comparePaths(a.at, b.at) })
		for i, r := range list {
			if i > 0 && within(list[i-1].at, r.at) && list[i-1].at != r.at {
				list[i] = list[i-1] // it covers what comes after as well
				continue
			}
			covered := slices.ContainsFunc(children[r.id], func(c tableRow) bool { return c.at == r.at })
			if !covered || r.fs == "autofs" {
				out = append(out, r)
			}
			visit(r.id)
		}
	}
	visit(outside)
	return out
}

// within reports whether p is dir or lies in it; both are clean and absolute.
func within(dir, p string) bool {
	rest, ok := strings.CutPrefix(p, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// comparePaths orders paths so that a directory comes before all in it, and these
// before its neighbours.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			}
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}

// beneath returns the mounts beneath a root, sorted by path. Where a line is as it was,
// the inode is that of before.
func beneath(rows []tableRow, root string, before []Mount) []Mount {
	late := make(chan struct{})
	defer time.AfterFunc(inodePatience, func() { close(late) }).Stop()
	known := make(map[string]Mount, len(before))
	for _, m := range before {
		known[m.Line] = m
	}
	var out []Mount
	for _, r := range rows {
		if r.at == root || !within(root, r.at) {
			continue
		}
		m := Mount{Path: strings.TrimPrefix(strings.TrimPrefix(r.at, strings.TrimSuffix(root, "/")), "/"), FS: r.fs, Auto: r.fs == "autofs", Line: r.line}
		switch was, ok := known[r.line]; {
		case m.Auto: // to look at it could mount what it stands for
		case ok && was.Path == m.Path:
			m.Inode = was.Inode
		default:
			m.Inode = rootInode(r.at, late)
		}
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b Mount) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// inodePatience is how long the inodes of all mounts beneath a root are waited for. One
// whose server is away must not keep a job that has nothing to do with it.
const inodePatience = 5 * time.Second

// rootInode returns the inode of what is mounted at a path; 0 = it cannot be told, as
// with a FUSE mount of another user, or one that does not answer.
func rootInode(at string, late <-chan struct{}) uint64 {
	found := make(chan uint64, 1)
	go func() { // stays in the kernel for as long as that takes
		var st unix.Statx_t
		flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
		if err := unix.Statx(unix.AT_FDCWD, at, flags, unix.STATX_INO, &st); err != nil {
			st.Ino = 0
		}
		found <- st.Ino
	}()
	select {
	case ino := <-found:
		return ino
	case <-late:
		return 0
	}
}

// mountsHeld are the mounts beneath a job's roots as they were last looked at.
type mountsHeld struct {
	mu         sync.Mutex
	generation uint64
	src, dst   []Mount
}

// Mounts returns what is mounted beneath the roots now, sorted by path. It costs a
// system call where nothing was mounted or unmounted since the last call. The result
// is not to be changed.
func (j *Job) Mounts() (src, dst []Mount, err error) {
	defer j.e.alone(j.spec.ID, "look at the mounts beneath", j.src.info.Path+" and "+j.dst.info.Path, 1)()
	table, generation, err := j.e.mounts.Read()
	if err != nil {
		return nil, nil, &fault.Error{Kind: fault.Unavailable, Op: "look at the mounts beneath the roots of job", Path: j.spec.ID, Err: err, Hint: "mount proc in this container or chroot"}
	}
	h := &j.mounted
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.generation != generation {
		rows := visible(parseMounts(table))
		if len(rows) == 0 {
			return nil, nil, &fault.Error{Kind: fault.Internal, Op: "look at the mounts beneath the roots of job", Path: j.spec.ID, Err: errors.New("the kernel's table of mounts has no line that can be read"), Hint: fmt.Sprintf("it has %d bytes", len(table))}
		}
		h.src, h.dst = beneath(rows, j.src.info.Real, h.src), beneath(rows, j.dst.info.Real, h.dst)
		h.generation = generation
	}
	return h.src, h.dst, nil
}
