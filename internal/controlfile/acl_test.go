package controlfile

import (
	"bytes"
	"testing"
)

func TestACLTextAndXattr(t *testing.T) {
	t.Parallel()
	const text = "user::rwx\nuser:1000:r-x\ngroup::r-x\ngroup:5:r--\nmask::rwx\nother::---\n"
	value := []byte{
		2, 0, 0, 0,
		1, 0, 7, 0, 255, 255, 255, 255,
		2, 0, 5, 0, 0xe8, 3, 0, 0,
		4, 0, 5, 0, 255, 255, 255, 255,
		8, 0, 4, 0, 5, 0, 0, 0,
		16, 0, 7, 0, 255, 255, 255, 255,
		32, 0, 0, 0, 255, 255, 255, 255,
	}
	if got, err := ACLFromXattr(value); err != nil || got != text {
		t.Errorf("%q, %v", got, err)
	}
	shuffled := "other::---\n# a comment\nmask::rwx #effective\ngroup:5:r--\n\ngroup::r-x\nuser:1000:r-x\nuser::rwx"
	for _, s := range []string{text, shuffled} {
		if got, err := ACLToXattr(s); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}

func TestBadACLsAreRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "user::rwx\n", "user::rwx\ngroup::rwx\nother::rwz\n", "user::rwx\ngroup::rwx\nother::rw\n",
		"user:root:rwx\nuser::rwx\ngroup::rwx\nmask::rwx\nother::rwx\n", // a name
		"user:1:rwx\nuser::rwx\ngroup::rwx\nother::rwx\n",               // no mask
		"user::rwx\nuser::rwx\ngroup::rwx\nother::rwx\n",
		"user:4294967295:rwx\nuser::rwx\ngroup::rwx\nmask::rwx\nother::rwx\n",
		"other:1:rwx\nuser::rwx\ngroup::rwx\n", "everyone::rwx\n", "user::rwx:\n",
	} {
		if b, err := ACLToXattr(s); err == nil {
			t.Errorf("%q is accepted as %v", s, b)
		}
	}
	for _, b := range [][]byte{nil, {2, 0, 0, 0}, {1, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255}, {2, 0, 0, 0, 1}} {
		if s, err := ACLFromXattr(b); err == nil {
			t.Errorf("%v is accepted as %q", b, s)
		}
	}
}

func TestEscapesAreUnique(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	s := Escape(string(all))
	if back, err := Unescape(s); err != nil || back != string(all) {
		t.Errorf("%q: %v", s, err)
	}
	for _, bad := range []string{"%", "%0", "%0a", "%41", "%GG", "a\nb", "%7E"} {
		if got, err := Unescape(bad); err == nil {
			t.Errorf("%q is accepted as %q", bad, got)
		}
	}
}
