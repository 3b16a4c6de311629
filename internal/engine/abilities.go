package engine

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
)

// Abilities are what the process may do with file systems, as far as it knows.
type Abilities struct {
	EUID uint32
	// Groups are those it belongs to; "" where permission bits do not bind it.
	Groups string
	// Lacks are the abilities of AllAbilities that it does not have, in their order.
	Lacks []string
	// IDs are the users and groups of its user namespace; "" = all there are.
	IDs string
}

// What a process may do.
const (
	CanReadAll  = "read-all"  // read what permission bits forbid
	CanWriteAll = "write-all" // change what they forbid
	CanOwn      = "owners"    // give objects to others
	CanActAs    = "any-owner" // do what only an object's owner may
	CanDevices  = "devices"   // make device nodes
	CanTrusted  = "trusted"   // set attributes of the trusted and security namespaces
	CanFileCaps = "file-caps" // set file capabilities
)

// AllAbilities are all there are.
func AllAbilities() []string {
	return []string{CanReadAll, CanWriteAll, CanOwn, CanActAs, CanDevices, CanTrusted, CanFileCaps}
}

// mostGroups is how many groups are named; more are told apart by their sum.
const mostGroups = 32

// ProcessAbilities returns what this process may do. It does not change.
func ProcessAbilities() Abilities {
	ids, override := foreignIDs(), capable(unix.CAP_DAC_OVERRIDE)
	has := map[string]bool{
		CanReadAll: override || capable(unix.CAP_DAC_READ_SEARCH), CanWriteAll: override, CanOwn: capable(unix.CAP_CHOWN), CanActAs: capable(unix.CAP_FOWNER),
		// Only the first user namespace's count for these.
		CanDevices: ids == "" && capable(unix.CAP_MKNOD), CanTrusted: ids == "" && capable(unix.CAP_SYS_ADMIN), CanFileCaps: capable(unix.CAP_SETFCAP),
	}
	a := Abilities{EUID: uint32(os.Geteuid()), IDs: ids}
	for _, name := range AllAbilities() {
		if !has[name] {
			a.Lacks = append(a.Lacks, name)
		}
	}
	if !override {
		a.Groups = groups()
	}
	return a
}

// groups lists the groups of the process.
func groups() string {
	list, err := os.Getgroups()
	if err != nil {
		list = nil // the effective one alone
	}
	list = append(list, os.Getegid())
	slices.Sort(list)
	list = slices.Compact(list)
	text := strings.Trim(fmt.Sprint(list), "[]")
	if len(list) > mostGroups {
		sum := sha256.Sum256([]byte(text))
		return fmt.Sprintf("%d of them, sum %s", len(list), hex.EncodeToString(sum[:8]))
	}
	return text
}

// foreignIDs describes the ids of the process's user namespace, if these are not all:
// capabilities do not reach what belongs to others.
func foreignIDs() string {
	var out []string
	for _, kind := range []string{"uid", "gid"} {
		data, err := os.ReadFile("/proc/self/" + kind + "_map")
		if err != nil {
			continue // a kernel without user namespaces
		}
		var ranges []string
		for line := range strings.Lines(string(data)) {
			ranges = append(ranges, strings.Join(strings.Fields(line), ":"))
		}
		if text := strings.Join(ranges, ","); text != "0:0:4294967295" {
			out = append(out, kind+"s "+text)
		}
	}
	return strings.Join(out, " ")
}

// CreatesAs returns to whom belongs what this process makes in the destination root, as
// "uid:gid": a server may give it to somebody else. It leaves nothing there. nonce is
// that of the job.
func (j *Job) CreatesAs(nonce string) (string, error) {
	if owner, err := j.createsNameless(); err == nil {
		return owner, nil
	}
	// NFS has no nameless files. The root's times are put back, which would undo what
	// the finish phase sets in that very moment.
	owner := ""
	err := j.withNonce(nonce+"-"+strings.ToLower(rand.Text()[:8]), "make a file", true, func(name string) error {
		fd, err := fsys.Openat(j.dst.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		owner, err = ownerOf(fd)
		return errors.Join(err, fsys.Unlinkat(j.dst.fd, name))
	})
	if err != nil {
		return "", err
	}
	return owner, nil
}

// createsNameless is CreatesAs where the file system has nameless files. The root's
// times stay as they are.
func (j *Job) createsNameless() (string, error) {
	defer j.e.alone(j.spec.ID, "make a file in", j.dst.info.Path, 1)()
	fd, err := fsys.Openat(j.dst.fd, ".", unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	return ownerOf(fd)
}

// ownerOf returns the owner of an open file, and closes it.
func ownerOf(fd int) (string, error) {
	var st unix.Stat_t
	err := errors.Join(fsys.Fstat(fd, &st), fsys.Close(fd))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid), err
}
