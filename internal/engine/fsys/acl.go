package fsys

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// Tags of ACL entries in the kernel's form, in the order in which it wants them.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclVersion  = 2
	aclNoID     = 0xffffffff
	aclEntryLen = 8
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// ParseACL turns the text form of a POSIX ACL into the value of its extended
// attribute. Entries are separated by newlines or commas: "user::rwx",
// "user:1000:r-x", "g:staff:r", "mask::r-x". Comments start with #. An empty
// text gives nil.
func ParseACL(text string) ([]byte, error) {
	var entries []aclEntry
	for line := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == '\n' || c == ',' }) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		e, err := parseACLEntry(line)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return nil, nil
	}
	return encodeACL(entries)
}

func parseACLEntry(line string) (aclEntry, error) {
	bad := func(why string) (aclEntry, error) { return aclEntry{}, fmt.Errorf("ACL entry %q: %s", line, why) }
	parts := strings.Split(line, ":")
	if len(parts) == 2 && (parts[0] == "m" || parts[0] == "mask" || parts[0] == "o" || parts[0] == "other") {
		parts = []string{parts[0], "", parts[1]}
	}
	if len(parts) != 3 {
		return bad("wants type:id:permissions")
	}
	var e aclEntry
	e.id = aclNoID
	for _, c := range parts[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return bad("permissions are made of r, w, x and -")
		}
	}
	named := parts[1] != ""
	switch parts[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return bad("type is not user, group, mask or other")
	}
	if !named {
		return e, nil
	}
	if e.tag == aclMask || e.tag == aclOther {
		return bad("has an id where there is none")
	}
	id, err := aclID(e.tag, parts[1])
	if err != nil {
		return bad(err.Error())
	}
	e.id = id
	return e, nil
}

// aclID returns a numeric id, looking names up on this machine: other scanners
// write what getfacl prints.
func aclID(tag uint16, s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	var id string
	if tag == aclUser {
		u, err := user.Lookup(s)
		if err != nil {
			return 0, errors.New("unknown user")
		}
		id = u.Uid
	} else {
		g, err := user.LookupGroup(s)
		if err != nil {
			return 0, errors.New("unknown group")
		}
		id = g.Gid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	return uint32(n), err
}

// encodeACL sorts, completes and encodes. A missing mask is the union of what it
// limits, as setfacl computes it.
func encodeACL(entries []aclEntry) ([]byte, error) {
	count := map[uint16]int{}
	var union uint16
	for _, e := range entries {
		count[e.tag]++
		if e.tag == aclUser || e.tag == aclGroup || e.tag == aclGroupObj {
			union |= e.perm
		}
	}
	if count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 || count[aclMask] > 1 {
		return nil, errors.New("ACL wants exactly one entry each for owner, owning group and others, and at most one mask")
	}
	if count[aclMask] == 0 && count[aclUser]+count[aclGroup] > 0 {
		entries = append(entries, aclEntry{tag: aclMask, perm: union, id: aclNoID})
	}
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
	out := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+aclEntryLen*len(entries)), aclVersion)
	for i, e := range entries {
		if i > 0 && e.tag == entries[i-1].tag && e.id == entries[i-1].id {
			return nil, fmt.Errorf("ACL has two entries for id %d", e.id)
		}
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out, nil
}
