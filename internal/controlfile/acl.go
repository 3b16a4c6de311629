package controlfile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// POSIX ACLs as Linux keeps them in system.posix_acl_access and
// system.posix_acl_default (linux/posix_acl_xattr.h): a version and entries of
// tag, permissions and id, little-endian.
const (
	aclVersion   = 2
	aclEntrySize = 8
	aclNoID      = 1<<32 - 1

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

func (e aclEntry) named() bool { return e.tag == aclUser || e.tag == aclGroup }

// ACLFromXattr turns the value of a POSIX ACL attribute into text: one entry a
// line, "user::rwx", "user:1000:r-x", "group::r-x", "group:5:r--", "mask::rwx",
// "other::r--", each with its line end, ids in decimal, in the kernel's order.
func ACLFromXattr(value []byte) (string, error) {
	if len(value) < 4 || le.Uint32(value) != aclVersion || (len(value)-4)%aclEntrySize != 0 {
		return "", fmt.Errorf("an ACL of %d bytes is not one of version %d", len(value), aclVersion)
	}
	var list []aclEntry
	for b := value[4:]; len(b) > 0; b = b[aclEntrySize:] {
		e := aclEntry{le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:])}
		if !e.named() {
			e.id = aclNoID // the kernel ignores it there
		}
		list = append(list, e)
	}
	if err := checkACL(list); err != nil {
		return "", err
	}
	var text strings.Builder
	for _, e := range list {
		text.WriteString(aclTagName(e.tag))
		text.WriteByte(':')
		if e.named() {
			text.WriteString(strconv.FormatUint(uint64(e.id), 10))
		}
		text.WriteByte(':')
		for i, c := range "rwx" {
			if e.perm&(4>>i) == 0 {
				c = '-'
			}
			text.WriteRune(c)
		}
		text.WriteByte('\n')
	}
	return text.String(), nil
}

// ACLToXattr turns the text of an ACL into the value of a POSIX ACL attribute.
// Entries may come in any order; empty lines and comments from "#" on are
// ignored. Names instead of numeric ids are refused: which id they had is a
// matter of the host that was scanned.
func ACLToXattr(text string) ([]byte, error) {
	var list []aclEntry
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" {
			continue
		}
		e, err := parseACLEntry(line)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
	if err := checkACL(list); err != nil {
		return nil, err
	}
	b := le.AppendUint32(nil, aclVersion)
	for _, e := range list {
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		b = le.AppendUint32(b, e.id)
	}
	return b, nil
}

func parseACLEntry(line string) (aclEntry, error) {
	e := aclEntry{id: aclNoID}
	f := strings.Split(line, ":")
	if len(f) != 3 {
		return e, fmt.Errorf("the ACL entry %s has not the form type:id:permissions", quote(line))
	}
	switch f[0] {
	case "user":
		e.tag = aclUserObj
	case "group":
		e.tag = aclGroupObj
	case "mask":
		e.tag = aclMask
	case "other":
		e.tag = aclOther
	default:
		return e, fmt.Errorf("the ACL entry %s is not of user, group, mask or other", quote(line))
	}
	if f[1] != "" {
		id, ok := parseUint(f[1], aclNoID-1)
		if !ok || e.tag != aclUserObj && e.tag != aclGroupObj {
			return e, fmt.Errorf("the ACL entry %s has %s where a numeric id can be", quote(line), quote(f[1]))
		}
		e.tag <<= 1 // user to named user, group to named group
		e.id = uint32(id)
	}
	if len(f[2]) != 3 {
		return e, fmt.Errorf("the ACL entry %s has no three permissions", quote(line))
	}
	for i := range 3 {
		switch f[2][i] {
		case "rwx"[i]:
			e.perm |= 4 >> i
		case '-':
		default:
			return e, fmt.Errorf("the ACL entry %s has the permission %q", quote(line), f[2][i])
		}
	}
	return e, nil
}

// checkACL applies the kernel's rules (posix_acl_valid) to a list in its order.
func checkACL(list []aclEntry) error {
	count := map[uint16]int{}
	for i, e := range list {
		switch e.tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return fmt.Errorf("the ACL has an entry of the unknown type %#x", e.tag)
		}
		if e.perm > 7 || e.named() && e.id == aclNoID {
			return fmt.Errorf("the ACL has the permissions %#o for id %d", e.perm, e.id)
		}
		if i > 0 && (list[i-1].tag > e.tag || list[i-1].tag == e.tag && list[i-1].id >= e.id) {
			return fmt.Errorf("the ACL has two %s entries that are the same or out of order", aclTagName(e.tag))
		}
		count[e.tag]++
	}
	switch {
	case count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1:
		return errors.New("the ACL needs one entry each for the owner, the group and others")
	case count[aclMask] == 0 && count[aclUser]+count[aclGroup] > 0:
		return errors.New("the ACL has entries with ids and no mask")
	}
	return nil
}

func aclTagName(tag uint16) string {
	switch tag {
	case aclUserObj, aclUser:
		return "user"
	case aclGroupObj, aclGroup:
		return "group"
	case aclMask:
		return "mask"
	}
	return "other"
}
