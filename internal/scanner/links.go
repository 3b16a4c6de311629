package scanner

import (
	"bytes"
	"context"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// inodeKey is how many bytes of a link's key are its device and inode.
const inodeKey = 16

// linkGroup is the links of one inode: all of them that the scan has seen. It is
// in memory as a whole, because whether it is written and what its first line
// says is only known at its end; file systems allow tens of thousands of links,
// at about 300 bytes each.
type linkGroup struct {
	key     []byte
	text    []byte // keys and values of the members
	members []linkMember
	changed bool   // a member has to be written, so all have
	split   bool   // the destination has it as several objects
	at      devIno // what the destination has as a member; zero = not known
}

// linkMember is where a member's key and value are in the text of its group.
type linkMember struct {
	key, value, end int
	linked          uint64 // members of groups in its directory
	mode            string
	adopted         bool
}

// runLinks writes the hard-link groups from the sort by inode.
func (e *emitter) runLinks(ctx context.Context, m *merger) error {
	var g linkGroup
	for n := 0; ; n++ {
		if n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		key, value, ok, err := m.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if !bytes.Equal(g.key, key[:inodeKey]) {
			if err := e.group(&g); err != nil {
				return err
			}
			g = linkGroup{key: append(g.key[:0], key[:inodeKey]...), text: g.text[:0], members: g.members[:0]}
		}
		d := decoder{b: value}
		linked, at := d.uint(), devIno{d.uint(), d.uint()}
		if d.bad || len(d.b) == 0 || int(d.b[0]&^memberAdopted) >= len(linkModes) {
			return &fault.Error{Kind: fault.Corrupt, Op: "read back a link", Err: errShortRecord}
		}
		if at != (devIno{}) {
			g.split = g.split || g.at != devIno{} && g.at != at && !e.cfg.NoLinks
			g.at = at
		}
		mem := linkMember{key: len(g.text), linked: linked, mode: linkModes[d.b[0]&^memberAdopted], adopted: d.b[0]&memberAdopted != 0}
		g.text = append(g.text, key[inodeKey:]...)
		mem.value = len(g.text)
		g.text = append(g.text, d.b[1:]...)
		mem.end = len(g.text)
		g.members = append(g.members, mem)
		g.changed = g.changed || mem.mode != modeSame
	}
	if err := e.group(&g); err != nil {
		return err
	}
	return e.finishAll(controlfile.Hardlink)
}

// group counts a group and, if it has changed, writes it.
func (e *emitter) group(g *linkGroup) error {
	if len(g.members) == 0 {
		return nil
	}
	var first Record
	for i, mem := range g.members {
		var r Record
		if err := decodeNumbers(g.text[mem.value:mem.end], &r); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read back a link", Err: err}
		}
		if i == 0 {
			first = r
		}
		e.countType(&r)
	}
	e.res.Groups++
	e.res.Links += uint64(len(g.members))
	e.res.Bytes += first.data()
	if !g.changed && g.split {
		e.res.Repaired += uint64(len(g.members))
	}
	if !g.changed && !g.split {
		e.res.Unchanged += uint64(len(g.members))
		for _, mem := range g.members {
			if mem.adopted {
				e.res.Adopted++
			}
		}
		return nil
	}
	e.res.CopyBytes += first.data()
	return e.writeGroup(g, first.Ino, first.data())
}

// writeGroup writes a group: never across two files.
func (e *emitter) writeGroup(g *linkGroup, inode, size uint64) error {
	k := fileKind{controlfile.Hardlink, g.needsCode()}
	w, err := e.writer(k)
	if err != nil {
		return err
	}
	if w.Entries() > 0 && w.Entries()+1+len(g.members) > e.maxEntries() {
		if err := e.finish(k); err != nil {
			return err
		}
		if w, err = e.writer(k); err != nil {
			return err
		}
	}
	if err := w.Add(controlfile.Entry{Type: controlfile.TypeGroup, LinkCount: uint64(len(g.members)), Inode: inode}, 0); err != nil {
		return err
	}
	lastDir := ""
	for _, mem := range g.members {
		var r Record
		r.Dir, r.Name = splitKey(g.text[mem.key:mem.value], lastDir)
		lastDir = r.Dir
		if err := decodeValue(g.text[mem.value:mem.end], &r); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: r.Path(), Err: err}
		}
		// Each has its own record, so that the name in it can be checked.
		ref, err := e.record(&r, r.Name)
		if err != nil {
			return err
		}
		line := controlfile.Entry{
			Type: controlfile.TypeFile, Dir: "/" + r.Dir, Name: r.Name, FileCount: mem.linked, ACL: r.AccessACL != "", Meta: ref,
		}
		// The reference sums sizes per link, too. That the line can be written
		// has been found out before it was sorted.
		if err := w.Add(line, size); err != nil {
			return err
		}
		mode := mem.mode
		if mode != modeNew {
			mode = modeBoth
		}
		e.countMode(mode)
		e.res.LinkedFiles++
		e.tell(OpLink, mode, r.Path(), false)
		if err := e.touchLinked(g.text[mem.key:mem.value]); err != nil {
			return err
		}
	}
	e.written.Add(uint64(len(g.members)))
	return nil
}

// needsCode reports whether a member can only be in a coded file. The group then is, as a
// whole.
func (g *linkGroup) needsCode() bool {
	if bytes.IndexByte(g.text, '\n') < 0 {
		return false
	}
	lastDir := ""
	for _, mem := range g.members {
		line := controlfile.Entry{Type: controlfile.TypeFile}
		line.Dir, line.Name = splitKey(g.text[mem.key:mem.value], lastDir)
		lastDir = line.Dir
		if controlfile.NeedsCode(controlfile.Hardlink, line) {
			return true
		}
	}
	return false
}

func (e *emitter) maxEntries() int {
	if e.cfg.MaxEntries == 0 {
		return controlfile.DefaultMaxEntries
	}
	return e.cfg.MaxEntries
}

// Directories in which nothing changes but perhaps links wait in a sort of their
// own: each with its record and, behind that, a mark for those in which links
// have been written.
const (
	waitingDir = "0"
	touchedDir = "1"
)

// wait lets a directory wait until the links are written.
func (e *emitter) wait(dirKey, value []byte) error {
	if e.linkDirs == nil {
		return nil
	}
	e.key = append(append(append(e.key[:0], dirKey...), 0, 0), waitingDir...)
	return e.linkDirs.add(e.key, value)
}

// touchLinked notes the directory of a link that has been written.
func (e *emitter) touchLinked(key []byte) error {
	if e.linkDirs == nil {
		return nil
	}
	e.key = append(e.key[:0], key[:bytes.Index(key, []byte{0, 0})+2]...)
	return e.linkDirs.add(append(e.key, touchedDir...), nil)
}

// runLinkDirs writes the lines of directories that waited and have been touched.
func (e *emitter) runLinkDirs(m *merger) error {
	var dir, record []byte
	for {
		key, value, ok, err := m.next()
		if err != nil || !ok {
			return err
		}
		switch end := len(key) - 1; {
		case string(key[end:]) == waitingDir:
			dir, record = append(dir[:0], key[:end]...), append(record[:0], value...)
		case len(record) > 0 && bytes.Equal(dir, key[:end]):
			var r Record
			r.Dir, _ = splitKey(key[:end-2], "")
			if err := decodeValue(record, &r); err != nil {
				return &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: r.Dir, Err: err}
			}
			e.res.Unchanged--
			if _, err := e.directory(&r, modeStay); err != nil {
				return err
			}
		}
	}
}
