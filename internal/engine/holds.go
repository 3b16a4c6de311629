package engine

import (
	"math"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
)

// holds says what a destination's file system can keep of metadata. A copy finds
// out by trying; who compares must not try, since it changes nothing.
type holds struct {
	known    bool  // min and max are
	min, max int64 // seconds; times before and after are made these
	coarse   int64 // seconds are kept in steps of so many; 0 = 1
	noOwners bool  // every object is the mount's owner's
	attrs    int   // bytes for the attributes of one object; 0 = not known
}

// Ranges of times, in seconds.
const (
	extMax = 1<<34 - 1 + math.MinInt32 // ext4 with inodes that have room for two more bits
	xfsMax = math.MaxUint64/1_000_000_000 + math.MinInt32 - 1
)

// Where file systems end, for those of which nothing else is known: signed and
// unsigned 32 bits, ext4, xfs, and the years 1980 and 2107 of FAT.
var knownEnds = []int64{math.MinInt32, math.MaxInt32, 0, math.MaxUint32, extMax, xfsMax, 315532800, 4354819198, 4354819199}

// holdsOf finds out about the file system of the directory behind fd, which may be
// an O_PATH descriptor.
func (e *Engine) holdsOf(fd int) holds {
	var sf unix.Statfs_t
	if unix.Fstatfs(fd, &sf) != nil {
		return holds{}
	}
	switch uint32(sf.Type) {
	case unix.EXT4_SUPER_MAGIC: // ext2 and ext3 as well
		h := holds{known: true, min: math.MinInt32, max: math.MaxInt32, attrs: int(sf.Bsize)}
		// The bits come with the field for the time of birth.
		var stx unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx); err == nil && stx.Mask&unix.STATX_BTIME != 0 {
			h.max = extMax
			h.attrs += 256 // within the inode
		}
		return h
	case unix.XFS_SUPER_MAGIC:
		h := holds{known: true, min: math.MinInt32, max: math.MaxInt32}
		wide, ok := e.xfsBigtime(fd)
		if wide {
			h.max = xfsMax
		}
		h.known = ok
		return h
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return holds{known: true, min: math.MinInt64, max: math.MaxInt64}
	case unix.MSDOS_SUPER_MAGIC:
		return holds{coarse: 2, noOwners: true}
	case unix.EXFAT_SUPER_MAGIC:
		return holds{noOwners: true}
	}
	return holds{}
}

// xfsBigtime reports whether an xfs has times beyond 2038.
func (e *Engine) xfsBigtime(fd int) (wide, ok bool) {
	dir, err := e.proc.Reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, false
	}
	defer func() { _ = fsys.Close(dir) }()
	var geometry [256]byte // struct xfs_fsop_geom
	const (
		getGeometry = 2<<30 | len(geometry)<<16 | 'X'<<8 | 126
		flags       = 92
		bigtime     = 1 << 21
	)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), uintptr(uint32(getGeometry)), uintptr(unsafe.Pointer(&geometry))); errno != 0 {
		return false, false
	}
	return *(*uint32)(unsafe.Pointer(&geometry[flags]))&bigtime != 0, true
}

// holds returns what the file system of an object of the destination can keep.
func (j *Job) holds(have *unix.Stat_t) holds {
	if have.Dev != j.dst.info.Dev {
		return holds{}
	}
	j.holdsOnce.Do(func() { j.holdsDst = j.e.holdsOf(j.dst.fd) })
	return j.holdsDst
}

// fit returns the time that is kept of ts, and whether that is another second.
func (h holds) fit(ts unix.Timespec) (kept unix.Timespec, lost bool) {
	if !h.known {
		return ts, false
	}
	kept = ts
	switch {
	case ts.Sec <= h.min:
		kept = timespec(h.min, 0)
	case ts.Sec >= h.max:
		kept = timespec(h.max, 0)
	}
	return kept, kept.Sec != ts.Sec
}

// end reports whether got is where a file system of which nothing is known may
// end, on the way to want.
func (h holds) end(want, got unix.Timespec) bool {
	if h.known || got.Nsec != 0 || !slices.Contains(knownEnds, got.Sec) {
		return false
	}
	return want.Sec > got.Sec && got.Sec > 1e9 || want.Sec < got.Sec && got.Sec < 1e9
}

// keeps reports whether the target has the time, as exactly as its file system
// holds times. How exactly that is, the times show that the file system itself
// sets: a ctime in whole microseconds stands for a file system that has no more.
func (h holds) keeps(want unix.Timespec, have *unix.Stat_t, exact bool) bool {
	got := have.Mtim
	if h.coarse > 1 {
		return want.Sec-want.Sec%h.coarse == got.Sec
	}
	if want.Sec != got.Sec {
		return false
	}
	if !exact || want.Nsec == got.Nsec {
		return true
	}
	for _, unit := range []int64{100, 1e3, 1e6, 1e7, 1e9} {
		if have.Ctim.Nsec%unit != 0 {
			return false
		}
		if want.Nsec-want.Nsec%unit == got.Nsec {
			return true
		}
	}
	return false
}

// room reports whether one object can have all these attributes. It knows of file
// systems that keep them in one block.
func (h holds) room(a *attrs) bool {
	if h.attrs == 0 {
		return true
	}
	const head, perAttr = 32, 16
	up := func(n int) int { return (n + 3) &^ 3 }
	sum := head
	for _, acl := range [][]byte{a.access, a.def} {
		if acl != nil {
			sum += perAttr + up(len(acl))
		}
	}
	for _, x := range a.xattrs {
		sum += perAttr + up(len(x.Name)) + up(len(x.Value))
	}
	return sum <= h.attrs
}

// user is who a process is when it gives objects away.
type user struct {
	uid    int
	groups []int
}

func thisUser() user {
	groups, err := os.Getgroups()
	if err != nil {
		groups = nil
	}
	return user{os.Geteuid(), append(groups, os.Getegid())}
}

// mayOwn reports which of owner and group of a an object can be given, which is
// made anew, or is a directory that stays.
func (r *run) mayOwn(t *target, a *attrs, have *unix.Stat_t) (owner, group bool) {
	e := r.j.e
	switch {
	case r.j.holds(have).noOwners:
		return a.uid == int(have.Uid), a.gid == int(have.Gid)
	case e.chowns:
		return true, true
	case isDirOp(t.e) && int(have.Uid) != e.user.uid:
		return false, false
	}
	return a.uid == e.user.uid, slices.Contains(e.user.groups, a.gid)
}
