package controlfile

import (
	"fmt"
	"strings"
)

const hexDigits = "0123456789ABCDEF"

// escapes reports whether a byte is escaped in a coded control file: the
// percent sign itself and the control characters, 0x00 to 0x1F and 0x7F. Bytes
// from 0x80 are written as they are, so that UTF-8 stays readable and invalid
// UTF-8 needs no rule.
func escapes(b byte) bool { return b == '%' || b < 0x20 || b == 0x7f }

// Escape writes a name as in a coded control file: each byte that escapes
// is "%" and two upper-case hexadecimal digits.
func Escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if escapes(s[i]) {
			b.Write([]byte{'%', hexDigits[s[i]>>4], hexDigits[s[i]&15]})
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// Unescape reverses Escape. Only what Escape writes is accepted, so that a name
// has one form.
func Unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			if escapes(s[i]) {
				return "", fmt.Errorf("the name %s has a control character that is not escaped", quote(s))
			}
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("the name %s ends inside an escape", quote(s))
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 || !escapes(byte(hi<<4|lo)) {
			return "", fmt.Errorf("the name %s has the escape %s, which is none", quote(s), quote(s[i:i+3]))
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), nil
}
