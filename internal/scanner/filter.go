package scanner

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// FilterConfig says what part of a scan's control files is wanted.
type FilterConfig struct {
	Control []string  // control files of one scan; delete files among them are left out
	Meta    string    // directory of their meta files, for the sizes in headers; "" = sizes are 0
	Out     string    // directory for the new control files; made if missing
	Paths   []string  // entry paths: these, what is below them and their parents
	Now     time.Time // time in headers and names; zero = now
	// Bad is called for each entry that cannot be read; nil = the first one is an
	// error.
	Bad func(error)
}

// Filter writes control files that hold only some entries of others. References
// to metadata stay as they are, so the meta files serve for both. A path of which
// there is nothing is an error of kind fault.NotFound.
func Filter(ctx context.Context, cfg FilterConfig) ([]ControlFile, error) {
	if len(cfg.Paths) == 0 {
		return nil, fault.Hinted(fault.Invalid, "name some", "select entries of control files: no paths")
	}
	want, err := newSelection(cfg.Paths)
	if err != nil {
		return nil, err
	}
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	if err := os.MkdirAll(cfg.Out, 0o755); err != nil {
		return nil, outError(cfg.Out, err)
	}
	f := &filterer{cfg: &cfg, want: want}
	if cfg.Meta != "" {
		f.meta = controlfile.OpenMetaDir(cfg.Meta)
		defer f.meta.Close()
	}
	for i, path := range cfg.Control {
		if err := f.file(ctx, path, i); err != nil {
			return nil, err
		}
	}
	if err := want.missing("select", "the scan"); err != nil {
		return nil, err
	}
	return f.made, syncDir(cfg.Out)
}

// filterer is one call of Filter.
type filterer struct {
	cfg  *FilterConfig
	want *selection
	meta *controlfile.MetaDir
	made []ControlFile

	header controlfile.Header
	parts  [2]filtered         // what is kept of the current file: uncoded, coded
	dir    string              // of the last directory line of a copy file
	group  []controlfile.Entry // i line and kept members of the current group
}

// filtered is a control file that holds some entries of another.
type filtered struct {
	w     *controlfile.Writer // nil until something is kept
	name  string
	under string // copy files: the directory that file lines belong to
}

func (f *filterer) file(ctx context.Context, path string, n int) (err error) {
	r, err := controlfile.Open(path, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	f.header = r.Header()
	if f.header.Kind == controlfile.Delete {
		return nil
	}
	f.dir, f.group = "", f.group[:0]
	id := &Config{TaskID: f.header.TaskID, Now: f.cfg.Now}
	for i := range f.parts {
		f.parts[i] = filtered{name: filepath.Join(f.cfg.Out, fileName(id, f.header.Kind, 2*n+i))}
	}
	for i := 0; ; i++ {
		if i%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = f.entry(e)
		}
		if err != nil {
			return err
		}
	}
	if err := f.endGroup(); err != nil {
		return err
	}
	for _, p := range f.parts {
		if p.w == nil {
			continue
		}
		if err := p.w.Close(); err != nil {
			return err
		}
		f.made = append(f.made, ControlFile{f.header.Kind, p.w.Path()})
	}
	return nil
}

// entry keeps an entry or not.
func (f *filterer) entry(e controlfile.Entry) error {
	switch e.Type {
	case controlfile.TypeBad:
		if f.cfg.Bad == nil {
			return e.Err
		}
		f.cfg.Bad(e.Err)
		if e.IsDir {
			f.dir = ""
		}
		return nil
	case controlfile.TypeGroup:
		err := f.endGroup()
		f.group = append(f.group[:0], e)
		return err
	case controlfile.TypeDir:
		f.dir = e.Dir
		if e.Mode == controlfile.ModeDeleted || !f.want.has(e.Path, true) {
			return nil
		}
		f.want.note(e.Path)
	case controlfile.TypeTimes:
		if !f.want.has(e.Path, true) {
			return nil
		}
	case controlfile.TypeFile:
		if e.Mode == controlfile.ModeDeleted || !f.want.has(e.Path, false) {
			return nil
		}
		f.want.note(e.Path)
		if f.header.Kind == controlfile.Hardlink {
			f.group = append(f.group, e)
			return nil
		}
		size, err := f.size(e)
		if err != nil {
			return err
		}
		return f.add(f.needsCode(e), e, size)
	}
	return f.add(f.needsCode(e), e, 0)
}

// endGroup writes what is kept of a hard-link group. Its first line is the one
// that is copied, whichever of the group it is.
func (f *filterer) endGroup() error {
	group := f.group
	f.group = f.group[:0]
	if len(group) < 2 {
		return nil
	}
	group[0].LinkCount = uint64(len(group) - 1)
	size, err := f.size(group[1])
	if err != nil {
		return err
	}
	coded := slices.ContainsFunc(group, f.needsCode)
	for i, e := range group {
		if i == 0 {
			err = f.add(coded, e, 0)
		} else {
			err = f.add(coded, e, size)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// size returns the size of an entry that counts as data. An entry whose record
// is damaged fails when it is to be restored.
func (f *filterer) size(e controlfile.Entry) (uint64, error) {
	if f.meta == nil {
		return 0, nil
	}
	m, err := f.meta.Lookup(e.Meta, e)
	switch {
	case fault.Is(err, fault.NotFound):
		return 0, err
	case err == nil && m.Mode&modeFormat == modeRegular:
		return m.Size, nil
	}
	return 0, nil // the restore reports what is wrong with it
}

// needsCode reports whether an entry belongs into the coded part.
func (f *filterer) needsCode(e controlfile.Entry) bool {
	return f.header.Coded() || controlfile.NeedsCode(f.header.Kind, e)
}

// add writes a line. A file is no longer than the one that it comes from, so it
// needs no limits of its own.
func (f *filterer) add(coded bool, e controlfile.Entry, size uint64) error {
	p, h := &f.parts[0], f.header
	if coded {
		p, h.Version = &f.parts[1], h.Kind.CodedVersion()
	}
	if p.w == nil {
		w, err := controlfile.NewWriter(p.name, h, f.cfg.Now, controlfile.Limits{})
		if err != nil {
			return err
		}
		p.w = w
	}
	err := f.under(p, e)
	if err == nil {
		err = p.w.Add(e, size)
	}
	if err != nil && f.cfg.Bad != nil && fault.Is(err, fault.Unsupported) {
		f.cfg.Bad(err)
		return nil
	}
	return err
}

// under names the directory of a file line of a copy file, where no line above it does:
// it was named for its sake only, or is in the other part.
func (f *filterer) under(p *filtered, e controlfile.Entry) error {
	switch {
	case f.header.Kind != controlfile.Copy:
		return nil
	case e.Type == controlfile.TypeDir:
		p.under = e.Dir
		return nil
	case p.under == f.dir:
		return nil
	}
	err := p.w.Add(controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Mode: controlfile.ModeDeleted, Dir: f.dir}, 0)
	if err == nil {
		p.under = f.dir
	}
	return err
}
