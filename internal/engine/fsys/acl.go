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
	sortACL(entries)
	for i, e := range entries {
		if i > 0 && e.tag == entries[i-1].tag && e.id == entries[i-1].id {
			return nil, fmt.Errorf("ACL has two entries for id %d", e.id)
		}
	}
	return appendACL(entries), nil
}

func sortACL(entries []aclEntry) {
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
}

func appendACL(entries []aclEntry) []byte {
	out := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+aclEntryLen*len(entries)), aclVersion)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out
}

// FormatACL renders the kernel's form of an ACL as ParseACL reads it, on one line.
func FormatACL(acl []byte) string {
	names := map[uint16]string{aclUserObj: "u:", aclUser: "u:", aclGroupObj: "g:", aclGroup: "g:", aclMask: "m:", aclOther: "o:"}
	var b strings.Builder
	for i, e := range decodeACL(acl) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(names[e.tag])
		if e.tag == aclUser || e.tag == aclGroup {
			b.WriteString(strconv.FormatUint(uint64(e.id), 10))
		}
		b.WriteByte(':')
		for k, c := range "rwx" {
			if e.perm&(4>>k) == 0 {
				c = '-'
			}
			b.WriteRune(c)
		}
	}
	return b.String()
}

// decodeACL is the inverse of encodeACL; of what is no ACL it gives what it can.
func decodeACL(acl []byte) []aclEntry {
	var out []aclEntry
	for i := 4; i+aclEntryLen <= len(acl); i += aclEntryLen {
		out = append(out, aclEntry{
			tag: binary.LittleEndian.Uint16(acl[i:]), perm: binary.LittleEndian.Uint16(acl[i+2:]), id: binary.LittleEndian.Uint32(acl[i+4:]),
		})
	}
	return out
}

// EffectiveACL returns an access ACL as an object has it that was given the ACL
// and then the mode: owner, others and the mask, or without one the group, are
// the mode's. One that says no more than a mode is none: nil.
func EffectiveACL(acl []byte, mode uint32) []byte {
	entries := decodeACL(acl)
	group := uint16(aclGroupObj)
	if slices.ContainsFunc(entries, func(e aclEntry) bool { return e.tag == aclMask }) {
		group = aclMask
	} else if !slices.ContainsFunc(entries, func(e aclEntry) bool { return e.tag == aclUser || e.tag == aclGroup }) {
		return nil
	}
	for i := range entries {
		switch entries[i].tag {
		case aclUserObj:
			entries[i].perm = uint16(mode >> 6 & 7)
		case group:
			entries[i].perm = uint16(mode >> 3 & 7)
		case aclOther:
			entries[i].perm = uint16(mode & 7)
		}
	}
	return appendACL(entries)
}

// SameACL reports whether two ACLs give the same rights; their entries may be in
// another order.
func SameACL(a, b []byte) bool {
	x, y := decodeACL(a), decodeACL(b)
	sortACL(x)
	sortACL(y)
	return slices.Equal(x, y)
}
