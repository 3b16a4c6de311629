package engine

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// A destination may take names for the same that a source tells apart: Makefile and
// makefile. Then an object that is found under a name may be another entry's. Who comes
// first has the name, and every other entry fails, whichever worker it is given to. So
// nothing is remembered: what counts is how the name is listed. Only directories are
// listed that were seen to do such things, which costs the others one look a batch.

// listBuf is enough for listing: it is rarely done.
const listBuf = 32 << 10

// spellings are names that were listed exactly as an entry has them.
type spellings struct {
	mu sync.Mutex
	m  map[string]map[string]struct{} // by directory; guarded by mu
}

func (s *spellings) has(dir, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[dir][name]
	return ok
}

func (s *spellings) add(dir string, names map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]map[string]struct{}{}
	}
	s.m[dir] = names
}

// swapCase exchanges upper and lower case, of ASCII letters if there are any: these
// every file system folds that folds names, so the answer to such a name is sure. Of a
// name that is not UTF-8 it is not: some that fold names take that one as it is.
func swapCase(name string) (other string, sure bool) {
	b := []byte(name) // which need not be UTF-8
	for i, c := range b {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b[i], sure = c^0x20, true
		}
	}
	if valid := utf8.ValidString(name); sure || !valid {
		return string(b), sure && valid
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsUpper(c) {
			return unicode.ToLower(c)
		}
		return unicode.ToUpper(c)
	}, name), false
}

// looksLike reports whether two names differ in case at most. Of what is not UTF-8 that
// is asked of ASCII letters only: other bytes are no other than themselves.
func looksLike(a, b string) bool {
	if utf8.ValidString(a) && utf8.ValidString(b) {
		return strings.EqualFold(a, b)
	}
	lower := func(s string) string {
		out := []byte(s)
		for i, c := range out {
			if c >= 'A' && c <= 'Z' {
				out[i] = c | 0x20
			}
		}
		return string(out)
	}
	return lower(a) == lower(b)
}

// hasSpellings reports whether a name may have another that differs in case.
func hasSpellings(name string) bool {
	for i := range len(name) {
		if c := name[i] | 0x20; c >= 'a' && c <= 'z' || c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// folds reports whether the directory takes other spellings of a name for the name.
// The name exists in it. What has no letters tells nothing, and has no other spelling.
func (r *run) folds(dir *fsys.Dir, name string) (bool, error) {
	if folds, known := dir.Folds(); known {
		return folds, nil
	}
	other, sure := swapCase(name)
	if other == name {
		return false, nil
	}
	var st unix.Stat_t
	switch err := fsys.Lstatat(dir.FD, other, &st); fsys.Errno(err) {
	case 0:
		dir.SetFolds(true) // if there are both listing will tell
		return true, nil
	case unix.ENOENT, unix.ENAMETOOLONG, unix.EINVAL, unix.EILSEQ:
		if sure {
			dir.SetFolds(false)
		}
		return false, nil
	default:
		return false, opError("look for another spelling in", dir.Path, err)
	}
}

// otherSpelling returns the name under which the object st, which was found as name in
// dir, is listed, if that is not its name to the letter; else "". It gives unix.ENOENT if
// nothing is found as name any more: others replace what is there meanwhile.
func (r *run) otherSpelling(dir *fsys.Dir, name string, st *unix.Stat_t) (string, error) {
	folds, err := r.folds(dir, name)
	if err != nil || !folds || r.spelled.has(dir.Path, name) {
		return "", err
	}
	now := *st
	for round := range 8 {
		// The numbers of a listing are not those of a stat on every file system.
		exact, other, err := r.lookUp(dir, name, &now, round%2 == 1)
		if err != nil || exact || other != "" {
			return other, err
		}
		switch err := fsys.Lstatat(dir.FD, name, &now); fsys.Errno(err) {
		case 0:
		case unix.ENOENT:
			return "", err
		default:
			return "", opError("stat target", pathIn(dir, name), err)
		}
	}
	return "", &fault.Error{Kind: fault.Unsupported, Op: "find the spelling of", Path: pathIn(dir, name),
		Err: errors.New("it is there, and not listed under any spelling"), Hint: "does something else work in the destination?"}
}

// lookUp looks for the object st, found as name, in the listing of dir. exact says that
// the name is listed; else other is the name that looks like it, or that has its inode, by
// the listing or by a look at each.
func (r *run) lookUp(dir *fsys.Dir, name string, st *unix.Stat_t, each bool) (exact bool, other string, err error) {
	wanted := r.namesIn(dir.Path)
	listed := map[string]struct{}{}
	var alike, same string
	err = r.list(dir, func(n string, ino uint64) error {
		if _, ok := wanted[n]; ok || n == name {
			listed[n] = struct{}{}
		}
		var at unix.Stat_t
		if each && fsys.Lstatat(dir.FD, n, &at) == nil {
			ino = at.Ino
		}
		switch {
		case n == name:
			exact = true
		case looksLike(n, name):
			alike = n
		case ino == st.Ino:
			same = n
		}
		return nil
	})
	switch {
	case err != nil:
		return false, "", err
	case exact:
		r.spelled.add(dir.Path, listed)
		return true, "", nil
	case alike != "":
		return false, alike, nil
	}
	return false, same, nil
}

// namesIn returns the names that entries of the batch have in the destination directory.
func (r *run) namesIn(dir string) map[string]struct{} {
	names := map[string]struct{}{}
	for i := range r.b.Entries {
		p, where := r.j.trimmed(r.b.Entries[i].Path)
		if where != placeBelow {
			continue
		}
		if dir != "" {
			rest, ok := strings.CutPrefix(p, dir+"/")
			if !ok {
				continue
			}
			p = rest
		}
		name, _, _ := strings.Cut(p, "/")
		names[name] = struct{}{}
	}
	return names
}

func (r *run) list(dir *fsys.Dir, f func(name string, ino uint64) error) error {
	fd, err := r.openList(dir.FD)
	if fsys.Errno(err) == unix.EACCES && !r.j.spec.ReadOnly && r.openUp(dir, err) == nil {
		fd, err = r.openList(dir.FD)
	}
	if err == nil {
		err = r.eachEntry(fd, f)
		_ = fsys.Close(fd)
	}
	if fsys.Errno(err) == unix.ENOENT && dir.Gone() {
		return errParentGone
	}
	return opError("list", dir.Path, err)
}

// eachEntry calls f with each name in the directory fd and its inode.
func (r *run) eachEntry(fd int, f func(name string, ino uint64) error) error {
	n := 0
	return fsys.EachEntry(fd, make([]byte, listBuf), func(name string, ino uint64) error {
		if n++; n%1024 == 0 {
			if err := r.check(); err != nil {
				return err
			}
		}
		return f(name, ino)
	})
}

// sourcePath returns the entry path of a destination path.
func (j *Job) sourcePath(p string) string {
	if j.trim == "" || p == "" {
		return j.trim + p
	}
	return j.trim + "/" + p
}

// sourceSpells reports whether the source has, beside the entry whose destination is
// path, one that is called other to the letter: a source may fold names as well.
func (r *run) sourceSpells(path, other string) (bool, error) {
	up, _ := split(r.j.sourcePath(path))
	dir, err := r.src.Get(up)
	switch fsys.Errno(err) {
	case 0:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return false, nil
	default:
		return false, sourceError("open source directory", up, err)
	}
	defer dir.Release()
	fd, err := r.openList(dir.FD)
	if err != nil {
		return false, sourceError("list source directory", up, err)
	}
	defer func() { _ = fsys.Close(fd) }()
	has := false
	err = r.eachEntry(fd, func(n string, _ uint64) error {
		has = has || n == other
		return nil
	})
	if err != nil {
		return false, sourceError("list source directory", up, err)
	}
	return has, nil
}

// rival returns the other spelling under which the object st in the place of path is
// listed, "" if it is listed as path has it. If the source has an entry of that spelling
// too the object is that entry's, and the error says so. unix.ENOENT is as it is of
// otherSpelling.
func (r *run) rival(path string, dir *fsys.Dir, name string, st *unix.Stat_t) (string, error) {
	other, err := r.otherSpelling(dir, name, st)
	if err != nil || other == "" {
		return "", err
	}
	has, err := r.sourceSpells(path, other)
	if err == nil && has {
		err = &fault.Error{Kind: fault.Unsupported, Op: "make", Path: path,
			Err:  fmt.Errorf("the destination does not tell it from %s, which the source has as well", quote(beside(path, other))),
			Hint: "rename one of them, or choose a destination that tells upper from lower case"}
	}
	return other, err
}

// beside returns the path of name in the directory that path is in.
func beside(path, name string) string {
	if up, _ := split(path); up != "" {
		return up + "/" + name
	}
	return name
}

// pathIn returns the destination path of name in dir.
func pathIn(dir *fsys.Dir, name string) string {
	if dir.Path == "" {
		return name
	}
	return dir.Path + "/" + name
}

// giveWay looks at the object st that was found in the place of t. One that is listed
// under another spelling, which the source has no longer, is removed: replacing it would
// keep that spelling, and the line that deletes it would delete what t is about. gone
// says that there is nothing in the place of t any more.
func (r *run) giveWay(t *target, dir *fsys.Dir, name string, st *unix.Stat_t) (gone bool, err error) {
	other, err := r.rival(t.path, dir, name, st)
	switch {
	case fsys.Errno(err) == unix.ENOENT:
		return true, nil
	case err != nil || other == "":
		return false, err
	case r.neverReplaces(t):
		return false, errKept
	case fsys.Type(st.Mode) == unix.S_IFDIR:
		return false, nil // a directory in the way
	}
	if err := r.check(); err != nil {
		return false, err
	}
	err = r.changing(dir, func() error { return fsys.Unlinkat(dir.FD, other) })
	switch fsys.Errno(err) {
	case 0, unix.ENOENT, unix.EISDIR:
		return true, nil
	}
	return false, opError("delete", beside(t.path, other), err)
}

// errMisspelled means that a directory was found under a name that is not its own to
// the letter.
var errMisspelled = errors.New("the directory is spelled otherwise")

// checkSpelling gives errMisspelled if the directory d is not called what path says. get
// returns its parent directory.
func (r *run) checkSpelling(d *fsys.Dir, path string, get func(string) (*fsys.Dir, error)) (other string, err error) {
	if path == "" || d.Spelled() {
		return "", nil
	}
	up, name := split(path)
	parent, err := get(up)
	if err != nil {
		return "", err
	}
	defer parent.Release()
	other, err = r.otherSpelling(parent, name, &d.Stat)
	if fsys.Errno(err) == unix.ENOENT {
		return "", errParentGone
	}
	if err == nil && other == "" {
		d.SetSpelled()
		return "", nil
	}
	if err == nil {
		err = errMisspelled
	}
	return other, err
}

// madeDir returns the directory d in the place of path unless it is another one's.
func (r *run) madeDir(d *fsys.Dir, path string) (*fsys.Dir, error) {
	other, err := r.checkSpelling(d, path, r.makeDirs)
	if errors.Is(err, errMisspelled) {
		err = r.misspelled(path, other)
	}
	if err != nil {
		d.Release()
		return nil, err
	}
	return d, r.holdForSync(d)
}

// misspelled is the error of an entry whose directory the destination has under another
// spelling. It is not renamed: that takes two steps, and who is killed between them
// leaves a tree that nobody finds.
func (r *run) misspelled(path, other string) error {
	has, err := r.sourceSpells(path, other)
	if err != nil {
		return err
	}
	e := &fault.Error{Kind: fault.Unsupported, Op: "make directory", Path: path,
		Err:  fmt.Errorf("the destination has it as %s, and does not tell the two apart", quote(beside(path, other))),
		Hint: "rename it there, or run again once it is deleted there"}
	if has {
		e.Err = fmt.Errorf("the destination does not tell it from %s, which the source has as well", quote(beside(path, other)))
		e.Hint = "rename one of them, or choose a destination that tells upper from lower case"
	}
	return e
}

// dstDir returns the destination directory that is called path to the letter.
func (r *run) dstDir(path string) (*fsys.Dir, error) {
	d, err := r.dst.Get(path)
	if err != nil {
		return nil, err
	}
	return r.spelledDir(d, path)
}

// spelledDir returns d, or unix.ENOENT if it is not called path to the letter.
func (r *run) spelledDir(d *fsys.Dir, path string) (*fsys.Dir, error) {
	_, err := r.checkSpelling(d, path, r.dstDir)
	if errors.Is(err, errMisspelled) {
		err = unix.ENOENT
	}
	if err != nil {
		d.Release()
		return nil, err
	}
	return d, nil
}
