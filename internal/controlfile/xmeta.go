package controlfile

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// Types of the fields of an xmeta record.
const (
	tlvName       = 1
	tlvACL        = 2
	tlvXattr      = 3
	tlvFileHandle = 4 // the one binary field
	tlvSparse     = 5
	tlvSymlink    = 7
	tlvMax        = 12 // 6 and 8 to 12 are of other worlds
)

const (
	xmetaHead = 8 // count u32, bytes u32
	tlvHead   = 6 // type u16, length u32
	// maxTLV is the most bytes of one field; the reference reads no larger.
	maxTLV = 4 << 20
	// maxXmeta bounds what one record can make its reader hold.
	maxXmeta = 16 << 20
)

// xmetaSize returns the bytes that follow the head of a record.
func xmetaSize(head []byte) (int, error) {
	count, size := le.Uint32(head), le.Uint32(head[4:])
	if size > maxXmeta {
		return 0, fmt.Errorf("the xmeta record announces %d bytes, more than %d", size, maxXmeta)
	}
	if uint64(count)*(tlvHead+1) > uint64(size) {
		return 0, fmt.Errorf("the xmeta record announces %d fields in %d bytes", count, size)
	}
	return int(size), nil
}

// decodeXmeta sets the fields of m that an xmeta record holds; b is the record
// behind its head.
func (m *Meta) decodeXmeta(count uint32, b []byte) error {
	m.HasX = m.Attr&attrPartial == 0
	m.Attr &^= attrPartial
	for i := range count {
		if len(b) < tlvHead {
			return fmt.Errorf("the xmeta record ends inside field %d of %d", i+1, count)
		}
		typ, size := le.Uint16(b), le.Uint32(b[2:])
		b = b[tlvHead:]
		if typ < 1 || typ > tlvMax || size < 1 || size > maxTLV || uint64(size) > uint64(len(b)) {
			return fmt.Errorf("field %d of the xmeta record has type %d and %d bytes of %d", i+1, typ, size, len(b))
		}
		if err := m.setField(typ, string(b[:size])); err != nil {
			return fmt.Errorf("field %d of the xmeta record: %w", i+1, err)
		}
		b = b[size:]
	}
	if len(b) > 0 {
		return fmt.Errorf("the xmeta record has %d bytes behind its last field", len(b))
	}
	return nil
}

func (m *Meta) setField(typ uint16, value string) error {
	switch typ {
	case tlvName:
		m.Name, m.HasName = value, true
	case tlvACL:
		access, def := splitACL(value)
		m.AccessACL += access
		m.DefaultACL += def
	case tlvXattr:
		x, err := parseXattr(value)
		if err != nil {
			return err
		}
		m.Xattrs = append(m.Xattrs, x)
	case tlvSparse:
		ext, err := parseSparse(value)
		if err != nil {
			return err
		}
		m.Sparse = append(m.Sparse, ext...)
	case tlvSymlink:
		m.Symlink, m.HasSymlink = value, true
	default:
		m.Other = append(m.Other, Field{Type: typ, Value: []byte(value)})
	}
	return nil
}

// splitACL splits an ACL text. Fields are "access:..." or "default:..."; older
// ones hold both, or the access list without a mark, or a mark on each line of
// the default list.
func splitACL(s string) (access, def string) {
	if s, _, _ = strings.Cut(s, "\x00"); s == "" {
		return "", ""
	}
	if rest, ok := strings.CutPrefix(s, "access:"); ok {
		s = rest
	}
	if rest, ok := strings.CutPrefix(s, "default:"); ok {
		return "", strings.ReplaceAll(rest, "\ndefault:", "\n")
	}
	if i := strings.Index(s, "\ndefault:"); i >= 0 {
		return s[:i+1], strings.ReplaceAll(s[i+len("\ndefault:"):], "\ndefault:", "\n")
	}
	return s, ""
}

// parseXattr parses "<keyLen>&<key><valueLen>&<value>". The key is taken by its
// length; the value is all that follows the next "&", whatever its length says,
// as the reference reads it.
func parseXattr(s string) (entry.Xattr, error) {
	size, rest, ok := strings.Cut(s, "&")
	n, num := parseUint(size, uint64(len(rest)))
	if !ok || !num || n == 0 {
		return entry.Xattr{}, fmt.Errorf("the attribute %s has no key of the length that it announces", quote(s))
	}
	key := rest[:n]
	if strings.IndexByte(key, 0) >= 0 {
		return entry.Xattr{}, fmt.Errorf("the attribute key %s has a NUL byte", quote(key))
	}
	size, value, ok := strings.Cut(rest[n:], "&")
	if _, num := parseUint(size, math.MaxUint32); !ok || !num {
		return entry.Xattr{}, fmt.Errorf("the attribute %s has no value", quote(key))
	}
	return entry.Xattr{Name: key, Value: []byte(value)}, nil
}

// parseSparse parses "off,len;off,len;", each pair with its semicolon.
func parseSparse(s string) ([]entry.Extent, error) {
	var list []entry.Extent
	for s != "" {
		pair, rest, ok := strings.Cut(s, ";")
		off, size, two := strings.Cut(pair, ",")
		o, ok1 := parseUint(off, math.MaxInt64)
		n, ok2 := parseUint(size, math.MaxInt64)
		if !ok || !two || !ok1 || !ok2 {
			return nil, fmt.Errorf("the list of extents ends badly at %s", quote(s))
		}
		list = append(list, entry.Extent{Offset: o, Length: n})
		s = rest
	}
	return list, nil
}

// formatSparse is the reverse of parseSparse.
func formatSparse(list []entry.Extent) string {
	var b []byte
	for _, x := range list {
		b = strconv.AppendUint(b, x.Offset, 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, x.Length, 10)
		b = append(b, ';')
	}
	return string(b)
}

// formatXattr is the reverse of parseXattr.
func formatXattr(x entry.Xattr) string {
	return strconv.Itoa(len(x.Name)) + "&" + x.Name + strconv.Itoa(len(x.Value)) + "&" + string(x.Value)
}
