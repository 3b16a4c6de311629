package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// connection says how to reach a cluster.
type connection struct {
	NATS  string `name:"nats" help:"NATS URL of the cluster." default:"nats://127.0.0.1:4222" env:"FSBACKUP_NATS_URL,FSBACKUP_NATS" placeholder:"URL"`
	Creds string `help:"NATS credentials file." env:"FSBACKUP_NATS_CREDS" placeholder:"FILE" type:"path"`
	NKey  string `name:"nkey" help:"File with the seed of an nkey, to log in to NATS with." env:"FSBACKUP_NATS_NKEY" placeholder:"FILE" type:"path"`
	CA    string `name:"tls-ca" help:"CA certificates (PEM) to trust for TLS." env:"FSBACKUP_TLS_CA" placeholder:"FILE" type:"path"`
	Cert  string `name:"tls-cert" help:"Client certificate (PEM)." env:"FSBACKUP_TLS_CERT" placeholder:"FILE" type:"path"`
	Key   string `name:"tls-key" help:"Key of the client certificate (PEM)." env:"FSBACKUP_TLS_KEY" placeholder:"FILE" type:"path"`
}

// connect returns a client; free releases it.
func (c connection) connect(a *app) (cl *client.Client, free func(), err error) {
	b, err := bus.Connect(a.ctx, bus.Config{URL: c.NATS, Name: "fsbackup", Creds: c.Creds, NKey: c.NKey, CA: c.CA, Cert: c.Cert, Key: c.Key, Logger: a.log})
	if err != nil {
		return nil, nil, err
	}
	return client.New(b), b.Close, nil
}

// jobFlags are the options that backup, run and submit share.
type jobFlags struct {
	Name        string `help:"Name of the job, for people." group:"job"`
	Priority    int    `help:"Priority from -4 to 4: each step doubles the job's share of the workers." default:"0" group:"job"`
	NoMeta      bool   `help:"Copy data only: default owners and modes, times of the copy." group:"job"`
	Replace     string `help:"Existing targets: always, if-older, never." default:"always" enum:"always,if-older,never" group:"job"`
	Vanished    string `help:"Sources that are gone: fail, skip." default:"fail" enum:"fail,skip" group:"job"`
	Changing    string `help:"Sources that change each time they are read: fail, take (as they were read last)." default:"fail" enum:"fail,take" group:"job"`
	DeleteFirst bool   `name:"delete-before" help:"Delete before copying, for full targets." group:"job"`
	Sync        string `help:"Durability: batch (one sync before results), file (each file), none." default:"batch" enum:"batch,file,none" group:"job"`
	Verify      string `help:"Verification while copying: none, checksum (what was written is read back and compared)." default:"none" enum:"none,checksum" group:"job"`
	MaxFailures int64  `help:"Failed entries that leave the status at completed; -1 = any." default:"0" placeholder:"N" group:"job"`
	FailFast    bool   `help:"Stop at the first failure that is not tolerated." group:"job"`
	Threads     int    `help:"Entries in flight per worker; 0 = the worker's own limit." default:"0" placeholder:"N" group:"job"`
	Memory      size   `help:"Buffers per worker, such as 64MiB; -1 = the worker's own limit." default:"-1" placeholder:"SIZE" group:"job"`
	FollowLinks bool   `name:"follow-root-links" help:"Follow symbolic links of anybody on the way to source and destination, not only those of root and of the workers' user." group:"job"`
	MaxWorkers  int    `name:"max-shards" help:"Shards at once over the whole cluster; 0 = no limit." default:"0" placeholder:"N" group:"job"`

	ShardEntries int  `help:"Entries of a shard." default:"2000" placeholder:"N" group:"job"`
	ShardBytes   size `help:"Data of a shard." default:"256MiB" placeholder:"SIZE" group:"job"`
}

func (f jobFlags) spec(source, destination string) protocol.JobSpec {
	return protocol.JobSpec{
		Source: source, Destination: destination, Pool: client.DefaultPool, Name: f.Name, Priority: f.Priority,
		WriteMeta: !f.NoMeta, Replace: f.Replace, Vanished: f.Vanished, DeleteBefore: f.DeleteFirst, Sync: f.Sync, Verify: f.Verify,
		Changing: f.Changing, FollowRootLinks: f.FollowLinks,
		MaxFailures: f.MaxFailures, FailFast: f.FailFast, Threads: f.Threads, Memory: int64(f.Memory), MaxWorkers: f.MaxWorkers,
		Limits: protocol.Limits{Entries: f.ShardEntries, DataBytes: uint64(max(f.ShardBytes, 0))},
	}
}

// size is a number of bytes with an optional unit.
type size int64

// UnmarshalText parses 4096, 64KiB, 8M, 1GiB ... (units are powers of 1,024).
func (s *size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	digits := strings.TrimRightFunc(in, func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.ParseInt(digits, 10, 64)
	shift := map[string]uint{"": 0, "B": 0, "K": 10, "KIB": 10, "KB": 10, "M": 20, "MIB": 20, "MB": 20, "G": 30, "GIB": 30, "GB": 30, "T": 40, "TIB": 40, "TB": 40}
	bits, ok := shift[strings.ToUpper(strings.TrimSpace(in[len(digits):]))]
	if err != nil || !ok || n < -1 || (n == -1 && bits > 0) || n > 1<<62>>bits {
		return fault.New(fault.Invalid, "%q is no size such as 4096, 64KiB or 1GiB", in)
	}
	*s = size(n << bits)
	return nil
}

// absolute returns p as a clean absolute path.
func absolute(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", &fault.Error{Kind: fault.Invalid, Op: "resolve", Path: p, Err: err}
	}
	return abs, nil
}

// inputFlags name control files and what they refer to.
type inputFlags struct {
	Source      string   `help:"Source root: entry paths are below it." required:"" placeholder:"DIR"`
	Destination string   `help:"Destination root: entry paths are put below it." required:"" placeholder:"DIR"`
	Meta        string   `help:"Directory of the meta files, or of a scan that holds them." placeholder:"DIR"`
	Control     []string `help:"Control files, or directories that are searched for all four kinds." required:"" placeholder:"FILE|DIR" sep:"none"`
	Trim        string   `help:"Leading components of entry paths that are left out below the destination." placeholder:"PREFIX"`
	VerifyOnly  bool     `help:"Compare source and destination by what the control files name, and change neither."`
	Check       bool     `name:"check-contents" help:"Compare the contents for entries of mode mm (metadata only), and copy them where they differ."`
	DeleteEmpty bool     `name:"delete-empty-dirs" help:"Delete only directories that are empty once all else that the control files name is deleted. For control files that name each entry, as those of fsbackup scan do; without, a directory goes with all that is in it."`
	SpareDirs   bool     `help:"Fail an entry in whose way a directory stands that is not empty; without, the directory is replaced with all that is in it."`
}

// apply puts the options of the control files' execution into a job's spec.
func (f inputFlags) apply(spec *protocol.JobSpec) {
	spec.Trim, spec.CheckContents, spec.VerifyOnly = f.Trim, f.Check, f.VerifyOnly
	spec.DeleteEmpty, spec.SpareDirs = f.DeleteEmpty, f.SpareDirs
}

// files finds the control and meta files.
func (f inputFlags) files() (client.Files, string, error) {
	var out client.Files
	for _, c := range f.Control {
		found, err := findControl(c)
		if err != nil {
			return out, "", err
		}
		out.Control = append(out.Control, found...)
	}
	// In the order of the phases, so that numbers grow as work proceeds.
	slices.SortStableFunc(out.Control, func(a, b protocol.FileRef) int { return int(a.Phase) - int(b.Phase) })
	needs := slices.ContainsFunc(out.Control, func(r protocol.FileRef) bool {
		return r.Phase == protocol.PhaseCopy || r.Phase == protocol.PhaseHardlink
	})
	if !needs {
		return out, "/", nil
	}
	if f.Meta == "" {
		return out, "", fault.Hinted(fault.Invalid, "name it with --meta DIR", "copy and hardlink control files need the directory of their meta files")
	}
	dir, err := findMeta(f.Meta)
	if err != nil {
		return out, "", err
	}
	out.Metas, err = metaFiles(dir)
	return out, dir, err
}

// metaFiles returns the meta and xmeta files in a directory, whose name is no pattern.
func metaFiles(dir string) ([]protocol.FileRef, error) {
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "list", Path: dir, Err: errors.Unwrap(err)}
	}
	var out []protocol.FileRef
	for _, n := range names {
		if strings.Contains(n.Name(), metaFile) {
			out = append(out, protocol.FileRef{Path: filepath.Join(dir, n.Name())})
		}
	}
	return out, nil
}

// metaFile is in the names of meta and xmeta files.
const metaFile = "meta_file_"

// findControl returns the control file at path, or all below a directory. What
// a file is, its title says; a name decides only what is looked at in a directory.
func findControl(path string) ([]protocol.FileRef, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, &fault.Error{Kind: fault.NotFound, Op: "find control file", Path: path, Err: errors.Unwrap(err), Hint: "name control files, or a directory that holds them"}
	}
	if !fi.IsDir() {
		kind, err := controlfile.Detect(path)
		if err != nil {
			return nil, err
		}
		return []protocol.FileRef{{Path: path, Phase: phaseOf(kind)}}, nil
	}
	var out []protocol.FileRef
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		kind, ok := controlfile.KindByName(d.Name())
		if d.IsDir() || !ok {
			return nil
		}
		// A file whose title does not fit its name is refused at admission, with
		// both named; one that cannot be read at all as well.
		if k, err := controlfile.Detect(p); err == nil {
			kind = k
		}
		out = append(out, protocol.FileRef{Path: p, Phase: phaseOf(kind)})
		return nil
	})
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "search for control files in", Path: path, Err: err}
	}
	inOrder(out)
	if len(out) == 0 {
		return nil, &fault.Error{Kind: fault.NotFound, Op: "search for control files in", Path: path, Err: errors.New("there is none"), Hint: "their names are control_*.txt, delete_control_*.txt, hardlink_control_*.txt and mtime_*.txt"}
	}
	return out, nil
}

// inOrder sorts the control files of a directory as a scan lists them: by number, and
// delete files with coded names before others, whose directories those names are below. So
// what deletes a directory comes after what deletes all that is in it.
func inOrder(files []protocol.FileRef) {
	type place struct{ coded, number int }
	places := map[string]place{}
	for _, f := range files {
		at := place{coded: 1, number: math.MaxInt}
		if r, err := controlfile.Open(f.Path, 0); err == nil {
			if h := r.Header(); h.Coded() && h.Kind == controlfile.Delete {
				at.coded = 0
			}
			_ = r.Close() // read only
		}
		for part := range strings.SplitSeq(filepath.Base(f.Path), "_") {
			if n, err := strconv.Atoi(part); err == nil {
				at.number = n
				break
			}
		}
		places[f.Path] = at
	}
	slices.SortStableFunc(files, func(a, b protocol.FileRef) int {
		x, y := places[a.Path], places[b.Path]
		return cmp.Or(cmp.Compare(filepath.Dir(a.Path), filepath.Dir(b.Path)), cmp.Compare(x.coded, y.coded), cmp.Compare(x.number, y.number))
	})
}

func phaseOf(k controlfile.Kind) protocol.Phase {
	switch k {
	case controlfile.Delete:
		return protocol.PhaseDelete
	case controlfile.Hardlink:
		return protocol.PhaseHardlink
	case controlfile.Mtime:
		return protocol.PhaseDir
	default:
		return protocol.PhaseCopy
	}
}

// findMeta returns the directory that holds meta_file_*: dir itself, or where a
// scan puts them below it.
func findMeta(dir string) (string, error) {
	for _, d := range []string{dir, filepath.Join(dir, "meta", "latest"), filepath.Join(dir, "latest")} {
		names, _ := os.ReadDir(d) // what cannot be read has none
		if slices.ContainsFunc(names, func(n fs.DirEntry) bool { return strings.HasPrefix(n.Name(), metaFile) }) {
			return absolute(d)
		}
	}
	if _, err := os.Stat(dir); err != nil {
		return "", &fault.Error{Kind: fault.NotFound, Op: "find meta files in", Path: dir, Err: errors.Unwrap(err), Hint: "name their directory with --meta"}
	}
	return "", &fault.Error{Kind: fault.NotFound, Op: "find meta files in", Path: dir, Err: errors.New("there is no meta_file_*"), Hint: "name their directory with --meta"}
}

// ended turns the final state of a job into the command's result.
func ended(v protocol.JobView) error {
	switch {
	case v.State == protocol.StateCompleted:
		return nil
	case v.Failures > 0 || v.Stats.Unattempted() > 0 || !v.Answered:
		return errFailures // whatever the reason
	case v.State == protocol.StateCancelled:
		return exit(fault.Canceled.ExitCode())
	}
	return fault.New(fault.ParseKind(v.Kind), "job %s failed: %s", v.ID, v.Reason)
}

// interrupted reports whether the command ends because of a signal.
func interrupted(ctx context.Context) bool { return ctx.Err() != nil }
