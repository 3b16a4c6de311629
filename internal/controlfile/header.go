package controlfile

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TimestampLayout is the form of a header's time: English month, local time,
// no zone.
const TimestampLayout = "2006-Jan-02 15:04:05"

// Header is the header of a control file. Values are everything behind the
// first colon of their line, so that an IPv6 address is whole; fields that a
// kind does not have are empty or 0.
type Header struct {
	Kind                              Kind
	Title, Version, Timestamp, TaskID string
	BackupType                        string
	NasServer, NasShare               string
	NasProtocol, NasProtocolVersion   string
	MetadataScope                     string
	Dirs                              uint64 // DirectoryCount, DirectoryDeleteCount or DirectoryMtimeSetCount
	Files                             uint64 // FileCount or FileDeleteCount
	Bytes                             uint64 // DataSize, bytes
}

// field returns where the value of a text label goes, nil for a count.
func (h *Header) field(label string) *string {
	switch label {
	case "Title":
		return &h.Title
	case "Version":
		return &h.Version
	case "Timestamp":
		return &h.Timestamp
	case "TaskId":
		return &h.TaskID
	case "BackupType":
		return &h.BackupType
	case "NasServer":
		return &h.NasServer
	case "NasShare":
		return &h.NasShare
	case "NasProtocol":
		return &h.NasProtocol
	case "NasProtocolVersion":
		return &h.NasProtocolVersion
	case "MetadataScope":
		return &h.MetadataScope
	}
	return nil
}

// count returns where the value of a count's label goes, nil for a text.
func (h *Header) count(label string) *uint64 {
	switch label {
	case "DirectoryCount", "DirectoryDeleteCount", "DirectoryMtimeSetCount":
		return &h.Dirs
	case "FileCount", "FileDeleteCount":
		return &h.Files
	case "DataSize":
		return &h.Bytes
	}
	return nil
}

// headerError refuses a file for its header.
func headerError(name string, line uint64, hint, format string, args ...any) error {
	return &fault.Error{
		Kind: fault.Invalid, Op: "read control file", Path: name, Hint: hint,
		Err: fmt.Errorf("line %d: %w", line, fmt.Errorf(format, args...)),
	}
}

const hintRescan = "have the scanner write the file again"

// readHeader reads the header and the blank line behind it. Fields are taken by
// label, in any order, each exactly once; only the title has a fixed place, the
// first line, because it decides which labels there must be.
func readHeader(src *lineSource, name string, want Kind) (Header, error) {
	var h Header
	first, err := src.next()
	if errors.Is(err, io.EOF) {
		return h, headerError(name, 1, hintRescan, "the file is empty")
	} else if err != nil {
		return h, readError(name, err)
	}
	// The line end of the first line decides for the file; it is cut off here
	// because the source learns about it only now.
	title := first.text
	if t, crlf := strings.CutSuffix(title, "\r"); crlf {
		title, src.cutCR = t, true
	}
	value, ok := strings.CutPrefix(title, "Title:")
	kind, known := kindByTitle(value)
	if !ok || !known {
		return h, notControlFile(name, title)
	}
	if want != 0 && kind != want {
		return h, headerError(name, 1, "give it to the "+kind.String()+" phase, or name a "+want.String()+" control file",
			"this is a %s control file (%q), not a %s control file (%q)", kind, value, want, want.Title())
	}
	h.Kind, h.Title = kind, value
	seen := []string{"Title"}
	for {
		l, err := src.next()
		if errors.Is(err, io.EOF) {
			return h, headerError(name, first.no+uint64(len(seen)), hintRescan, "the header ends early: no %s line", missingLabel(kind, seen))
		} else if err != nil {
			return h, readError(name, err)
		}
		if src.cutCR && !l.crlf {
			return h, headerError(name, l.no, hintRescan, "the header mixes CRLF and LF line ends")
		}
		if l.text == "" {
			break
		}
		if err := h.setLine(l, name, kind, seen); err != nil {
			return h, err
		}
		label, _, _ := strings.Cut(l.text, ":")
		seen = append(seen, label)
	}
	if label := missingLabel(kind, seen); label != "" {
		return h, headerError(name, first.no+uint64(len(seen)), hintRescan, "the header has no %s line", label)
	}
	if !slices.Contains(kinds[kind].versions, h.Version) {
		return h, headerError(name, 2, "versions that can be read: "+strings.Join(kinds[kind].versions, ", "),
			"version %s of a %s control file is not known", quote(h.Version), kind)
	}
	return h, nil
}

// setLine takes the value of one header line.
func (h *Header) setLine(l physLine, name string, kind Kind, seen []string) error {
	label, value, ok := strings.Cut(l.text, ":")
	switch {
	case !ok && len(seen) >= len(kinds[kind].labels), !slices.Contains(kinds[kind].labels, label) && len(seen) >= len(kinds[kind].labels):
		return headerError(name, l.no, hintRescan, "a blank line must follow the header, not %s", quote(l.text))
	case !ok:
		return headerError(name, l.no, hintRescan, "the header line %s has no colon", quote(l.text))
	case !slices.Contains(kinds[kind].labels, label):
		return headerError(name, l.no, hintRescan, "the header of a %s control file has no %s line", kind, quote(label))
	case slices.Contains(seen, label):
		return headerError(name, l.no, hintRescan, "the header has a second %s line", label)
	}
	if label == "Timestamp" {
		if _, err := time.Parse(TimestampLayout, value); err != nil {
			return headerError(name, l.no, hintRescan, "the timestamp %s has not the form YYYY-Mon-DD HH:MM:SS", quote(value))
		}
	}
	if n := h.count(label); n != nil {
		if *n, ok = parseUint(value, math.MaxInt64); !ok {
			return headerError(name, l.no, hintRescan, "%s is %s, not a count", label, quote(value))
		}
		return nil
	}
	*h.field(label) = value
	return nil
}

// missingLabel returns the first label of kind that has not been seen.
func missingLabel(kind Kind, seen []string) string {
	for _, label := range kinds[kind].labels {
		if !slices.Contains(seen, label) {
			return label
		}
	}
	return ""
}

// readError names the file in err, which may do so already.
func readError(name string, err error) error {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Path == name {
		return err
	}
	return &fault.Error{Kind: fault.KindOf(err), Op: "read control file", Path: name, Err: err}
}
