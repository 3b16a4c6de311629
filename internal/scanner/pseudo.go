package scanner

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// pseudoTypes are file systems that hold no data of anybody: what their files say
// is made when it is read, and some have no end. devtmpfs is none of them, since
// device nodes can be copied.
var pseudoTypes = map[uint32]string{
	unix.PROC_SUPER_MAGIC:    "proc",
	unix.SYSFS_MAGIC:         "sysfs",
	unix.CGROUP_SUPER_MAGIC:  "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2",
	unix.DEVPTS_SUPER_MAGIC:  "devpts",
	unix.DEBUGFS_MAGIC:       "debugfs",
	unix.TRACEFS_MAGIC:       "tracefs",
	unix.SECURITYFS_MAGIC:    "securityfs",
	unix.PSTOREFS_MAGIC:      "pstore",
	unix.BPF_FS_MAGIC:        "bpf",
	0x62656570:               "configfs",
	0x65735543:               "fusectl",
	0x19800202:               "mqueue",
	unix.HUGETLBFS_MAGIC:     "hugetlbfs",
	unix.EFIVARFS_MAGIC:      "efivarfs",
	unix.BINFMTFS_MAGIC:      "binfmt_misc",
	unix.AUTOFS_SUPER_MAGIC:  "autofs",
	unix.NSFS_MAGIC:          "nsfs",
	0x67596969:               "rpc_pipefs",
}

// Pseudo is a pseudo file system that was not entered.
type Pseudo struct {
	Path string `json:"path"`
	Type string `json:"type"` // proc, sysfs ...
}

// pseudos finds them. It is safe for concurrent use.
type pseudos struct {
	take  bool     // they are entered
	types sync.Map // of each device met: its Pseudo.Type, "" = another file system

	mu  sync.Mutex // guards met
	met []Pseudo
}

// at reports whether the directory behind fd is to be left out, because it is on
// one of these file systems.
func (p *pseudos) at(fd int, dev uint64, path string) bool {
	if p.take {
		return false
	}
	known, ok := p.types.Load(dev)
	if !ok {
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) != nil {
			return false // reading it will say why
		}
		known = pseudoTypes[uint32(st.Type)]
		p.types.Store(dev, known)
	}
	name, _ := known.(string)
	if name == "" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.met = append(p.met, Pseudo{path, name})
	return true
}

// list returns those that were met, by path.
func (p *pseudos) list() []Pseudo {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(p.met, func(a, b Pseudo) int { return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Type, b.Type)) })
	return p.met
}
