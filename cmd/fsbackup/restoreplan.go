package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// restorePlan is what a restore would do, in entries.
type restorePlan struct {
	Dirs     uint64 `json:"dirs"`
	Files    uint64 `json:"files"`    // all that is no directory, links included
	Links    uint64 `json:"links"`    // members of hard-link groups
	Bytes    uint64 `json:"bytes"`    // of regular files, a hard-link group once
	Replaced uint64 `json:"replaced"` // of the files those whose name the target has already
	Kept     uint64 `json:"kept"`     // those that --replace leaves as the target has them; not in files
	Refused  uint64 `json:"refused"`  // lines that cannot be read, or lie outside --strip-prefix
}

// restoreOp is what would be done with an entry.
type restoreOp struct {
	Op    string `json:"op"`   // dir, copy, link, replace, keep
	Path  string `json:"path"` // below the target
	IsDir bool   `json:"is_dir,omitempty"`
	Exact []byte `json:"path_bytes,omitempty"` // set where it is not UTF-8
}

// restorePreview is what --json prints of a dry run.
type restorePreview struct {
	Status       string          `json:"status"`
	ExitCode     int             `json:"exit_code"`
	ProblemCount uint64          `json:"problem_count"`
	Plan         restorePlan     `json:"plan"`
	Entries      []restoreOp     `json:"entries,omitempty"`
	Scan         *scanner.Result `json:"scan,omitempty"`
}

// preview says what a restore would do, and does nothing.
func (c restoreCmd) preview(a *app, files client.Files, meta string, res *scanner.Result) error {
	out := restorePreview{Status: "completed", Scan: res}
	tell := func(op restoreOp) {
		switch {
		case !c.List:
		case c.JSON:
			op.Exact = rawjson.Exact(op.Path)
			op.Path = scanner.EscapedPath(op.Path)
			out.Entries = append(out.Entries, op)
		case op.IsDir:
			fmt.Fprintf(a.stdout, "%s %q\n", op.Op, op.Path+"/")
		default:
			fmt.Fprintf(a.stdout, "%s %q\n", op.Op, op.Path)
		}
	}
	md := controlfile.OpenMetaDir(meta)
	defer md.Close()
	for _, f := range files.Control {
		if f.Phase != protocol.PhaseCopy && f.Phase != protocol.PhaseHardlink {
			continue // a restore deletes nothing, and directories are in copy files
		}
		if err := c.planFile(f, md, &out.Plan, tell); err != nil {
			return err
		}
	}
	if res != nil {
		out.ProblemCount = res.ProblemCount
	}
	var err error
	if out.ProblemCount > 0 || out.Plan.Refused > 0 {
		err = errFailures
		out.Status, out.ExitCode = "failed", exitCode(err)
	}
	if c.JSON {
		if err := printJSON(a.stdout, out); err != nil {
			return err
		}
	} else {
		p := out.Plan
		fmt.Fprintf(a.stdout, "would restore %d directories and %d files (%d of them hard links), %s; %d of the files are in the target already and would be replaced, %d more are kept there\n",
			p.Dirs, p.Files, p.Links, bytesText(p.Bytes), p.Replaced, p.Kept)
		if p.Refused > 0 {
			fmt.Fprintf(a.stdout, "cannot be restored: %d lines\n", p.Refused)
		}
		if out.ProblemCount > 0 {
			fmt.Fprintf(a.stdout, "not read: %d\n", out.ProblemCount)
		}
	}
	if res != nil {
		warnScan(a.stderr, res)
		printProblems(a.stderr, res)
	}
	return err
}

// planFile adds the entries of one control file to the plan.
func (c restoreCmd) planFile(f protocol.FileRef, md *controlfile.MetaDir, plan *restorePlan, tell func(restoreOp)) (err error) {
	r, err := controlfile.Open(f.Path, 0)
	if err != nil {
		return err // it names the file
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	first := false // the next entry is the first of its group
	for {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err // it names the file
		case e.Type == controlfile.TypeGroup:
			first = true
			continue
		case e.Type == controlfile.TypeBad:
			plan.Refused++
			continue
		case e.Mode == controlfile.ModeDeleted:
			continue // a parent that is named for the sake of what follows
		}
		path, ok := c.below(e.Path)
		switch {
		case !ok && e.IsDir && c.above(e.Path):
			continue
		case !ok:
			plan.Refused++
			continue
		case e.IsDir:
			plan.Dirs++
			tell(restoreOp{Op: "dir", Path: path, IsDir: true})
			continue
		}
		linked := f.Phase == protocol.PhaseHardlink
		c.planEntry(e, md, path, linked, linked && !first, plan, tell)
		first = false
	}
}

// planEntry adds an entry that is no directory. counted says that its data is
// that of another one.
func (c restoreCmd) planEntry(e controlfile.Entry, md *controlfile.MetaDir, path string, linked, counted bool, plan *restorePlan, tell func(restoreOp)) {
	m, err := md.Lookup(e.Meta, e)
	var st unix.Stat_t
	there := unix.Lstat(filepath.Join(c.Target, path), &st) == nil
	switch {
	case there && (c.Replace == "never" || c.Replace == "if-older" && err == nil && st.Mtim.Sec >= m.Mtime):
		plan.Kept++
		tell(restoreOp{Op: "keep", Path: path})
		return
	case there:
		plan.Replaced++
	}
	plan.Files++
	op := "copy"
	if linked {
		plan.Links++
		op = "link"
	}
	if there {
		op = "replace"
	}
	if err == nil && m.Mode&unix.S_IFMT == unix.S_IFREG && !counted {
		plan.Bytes += m.Size
	}
	tell(restoreOp{Op: op, Path: path})
}

// below returns where in the target an entry is put; false if nowhere.
func (c restoreCmd) below(path string) (string, bool) {
	trim := strings.Trim(c.Trim, "/")
	if trim == "" {
		return path, true
	}
	if path == trim {
		return "", true
	}
	return strings.CutPrefix(path, trim+"/")
}

// above reports whether a directory is one of those that --strip-prefix leaves out.
func (c restoreCmd) above(path string) bool {
	return path == "" || strings.HasPrefix(strings.Trim(c.Trim, "/"), path+"/")
}
