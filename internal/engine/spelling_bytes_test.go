package engine

import "testing"

// Of a name that is not UTF-8 another spelling is looked for by its ASCII letters, and
// what is found out of it is sure only if there is one.
func TestOtherSpellingsOfNamesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, other string
		sure        bool
	}{
		{"Ab", "aB", true}, {"\u00e4", "\u00c4", false}, {"1", "1", false},
		{"A\xff", "a\xff", false}, {"\xb1\xb8", "\xb1\xb8", false}, {"\u00e4\xff", "\u00e4\xff", false},
	} {
		if other, sure := swapCase(c.name); other != c.other || sure != c.sure {
			t.Errorf("%q: %q, %v", c.name, other, sure)
		}
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"Ab", "aB", true}, {"\u00e4", "\u00c4", true}, {"A\xff", "a\xff", true},
		{"\xff", "\xfe", false}, {"\xff", "\ufffd", false}, {"\ufffd", "\ufffd", true}, {"\u00e4\xff", "\u00c4\xff", false},
	} {
		if got := looksLike(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %v", c.a, c.b, got)
		}
	}
}

// The table of mounts has blanks between its columns; what Unicode takes for a blank, as
// bytes of GBK can be, is part of a path.
func TestMountPointsWithOtherBlanks(t *testing.T) {
	t.Parallel()
	const path = "/a\u3000b\u00a0\xb1\x85"
	rows := parseMounts([]byte("20 1 0:1 / " + path + " rw shared:1 - ext4 /dev/x rw\n"))
	if len(rows) != 1 || rows[0].at != path || rows[0].fs != "ext4" {
		t.Errorf("%+v", rows)
	}
}
