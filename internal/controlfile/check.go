package controlfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Summary is what the admission of a control file found out.
type Summary struct {
	Header Header
	Digest [sha256.Size]byte // SHA-256 of the whole file
	Size   int64             // bytes
	Pins   *Pins             // what the file is held to when it is read again

	Dirs         uint64 // readable d lines of copy files that are not dd; mtime lines
	Files        uint64 // readable f lines that are not dd
	DeletedDirs  uint64 // copy: d,dd lines, which the copy phase skips
	DeletedFiles uint64 // copy: f,dd lines, likewise
	RemoveDirs   uint64 // delete: d lines with flag 1
	ParentDirs   uint64 // d lines that only name a parent: delete files with flag 0, coded copy files with dd
	BadDirs      uint64 // unreadable text that counts as a directory
	BadFiles     uint64 // unreadable text that counts as a file
	Groups       uint64 // hardlink: i lines
	MaxGroup     uint64 // hardlink: f lines of the largest group

	// Records has, of each meta file that the entries to copy name, the first entry
	// that does.
	Records map[string]Entry
	last    string // named by the entry before
}

// Entries returns the number of entries that reading the file yields.
func (s *Summary) Entries() uint64 {
	return s.Dirs + s.Files + s.DeletedDirs + s.DeletedFiles + s.RemoveDirs + s.ParentDirs + s.Groups + s.Bad()
}

// Bad returns the number of unreadable entries.
func (s *Summary) Bad() uint64 { return s.BadDirs + s.BadFiles }

// Check is the admission of a control file: one pass that reads everything,
// counts, and computes the digest and the pins. It returns an error of kind
// fault.Invalid where the header is unusable and fault.Corrupt where the counts
// disagree, or the file became longer or shorter meanwhile.
//
// The counts of header and body agree if nothing is there that was not
// announced and each announced entry that is missing has an unreadable one that
// explains it: d <= D, f <= F and (D-d)+(F-f) <= bad. Lines of mode dd count or
// do not count, whichever fits: scanners differ. Delete files of version 1.0
// are held to more, because a name with a newline imitates entries there:
// readable and unreadable file lines together must be exactly F, and D must lie
// between the readable directories to remove and those and the unreadable ones
// together.
//
// The summary is valid as far as it goes when the error is not nil.
func Check(path string, want Kind) (Summary, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return Summary{}, openError(path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Summary{}, openError(path, err)
	}
	s, err := check(f, path, want, st.Size())
	if err == nil && s.Size != st.Size() {
		err = &fault.Error{Kind: fault.Corrupt, Op: "check control file", Path: path, Hint: "submit it when it is complete",
			Err: fmt.Errorf("it had %d bytes and has %d: it is being written to", st.Size(), s.Size)}
	}
	return s, err
}

// check is Check of what is said to have size bytes.
func check(rd io.Reader, name string, want Kind, size int64) (Summary, error) {
	var s Summary
	hash, pins := sha256.New(), newPinner(blockFor(size))
	r, err := NewReader(io.TeeReader(rd, io.MultiWriter(hash, pins)), name, want)
	if err != nil {
		return s, err
	}
	s.Header = r.Header()
	var group uint64
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return s, err
		}
		if errors.Is(e.Err, errSecondHeader) {
			return s, e.Err
		}
		if e.Type == TypeGroup {
			group = 0
		} else if s.Header.Kind == Hardlink && e.Type == TypeFile {
			group++
			s.MaxGroup = max(s.MaxGroup, group)
		}
		s.add(&e)
	}
	s.Size = r.Position().Offset
	hash.Sum(s.Digest[:0])
	s.Pins = pins.pins()
	return s, s.verify(name)
}

// add counts one entry.
func (s *Summary) add(e *Entry) {
	switch e.Type {
	case TypeDir:
		switch {
		case s.Header.Kind == Delete && e.Delete:
			s.RemoveDirs++
		case s.Header.Kind == Delete:
			s.ParentDirs++
		case e.Mode == ModeDeleted && s.Header.Coded():
			s.ParentDirs++ // only fsbackup writes such a file, and nothing is gone there
		case e.Mode == ModeDeleted:
			s.DeletedDirs++
		default:
			s.Dirs++
			s.noteRecord(e)
		}
	case TypeTimes:
		s.Dirs++
	case TypeFile:
		if e.Mode == ModeDeleted {
			s.DeletedFiles++
		} else {
			s.Files++
			s.noteRecord(e)
		}
	case TypeGroup:
		s.Groups++
	case TypeBad:
		if e.IsDir {
			s.BadDirs++
		} else {
			s.BadFiles++
		}
	}
}

// noteRecord notes which meta file an entry names.
func (s *Summary) noteRecord(e *Entry) {
	if !e.Meta.Valid || e.Meta.File == s.last {
		return
	}
	s.last = e.Meta.File
	if _, ok := s.Records[s.last]; ok {
		return
	}
	if s.Records == nil {
		s.Records = map[string]Entry{}
	}
	s.Records[s.last] = *e
}

// verify compares the counts of header and body by the rule of Check.
func (s *Summary) verify(name string) error {
	h := &s.Header
	var ok bool
	dirs, files := s.Dirs, s.Files
	switch h.Kind {
	case Copy:
		ok = explained(h, dirs, files, s.Bad())
		dirs, files = dirs+s.DeletedDirs+s.ParentDirs, files+s.DeletedFiles
		ok = ok || explained(h, dirs, files, s.Bad())
	case Delete:
		dirs = s.RemoveDirs
		ok = explained(h, dirs, files, s.Bad())
		if h.Version == "1.0" {
			ok = files+s.BadFiles == h.Files && dirs <= h.Dirs && h.Dirs <= dirs+s.BadDirs
		}
	default:
		ok = explained(h, dirs, files, s.Bad())
	}
	if ok {
		return nil
	}
	return &fault.Error{
		Kind: fault.Corrupt, Op: "check control file", Path: name, Hint: hintRescan,
		Err: fmt.Errorf("the header announces %s, the body has %s and %d unreadable entries",
			h.counts(h.Dirs, h.Files), h.counts(dirs, files), s.Bad()),
	}
}

func explained(h *Header, dirs, files, bad uint64) bool {
	if dirs > h.Dirs || files > h.Files {
		return false
	}
	missingDirs, missingFiles := h.Dirs-dirs, h.Files-files
	return missingDirs <= math.MaxUint64-missingFiles && missingDirs+missingFiles <= bad
}

// counts names the counts that the header of the kind has.
func (h *Header) counts(dirs, files uint64) string {
	switch h.Kind {
	case Copy:
		return fmt.Sprintf("%d directories and %d files", dirs, files)
	case Delete:
		return fmt.Sprintf("%d directories and %d files to delete", dirs, files)
	case Hardlink:
		return fmt.Sprintf("%d links", files)
	default:
		return fmt.Sprintf("%d directories", dirs)
	}
}
