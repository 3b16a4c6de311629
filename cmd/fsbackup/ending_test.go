package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// closed holds that the statistics of a job that has ended leave no entry out.
func closed(t *testing.T, v protocol.JobView) {
	t.Helper()
	if !v.State.Final() {
		return
	}
	s := v.Stats
	done := s.DirsCopied + s.FilesCopied
	if v.Spec.VerifyOnly {
		done = s.DirsVerified + s.FilesVerified
	}
	if want, got := s.DirsToBackup+s.FilesToBackup, done+s.DirsFailed+s.FilesFailed+s.SkippedToBackup+s.NotAttempted; got != want {
		t.Errorf("%d entries to back up, %d have an outcome or none: %+v", want, got, s)
	}
	if want, got := s.DirsToDelete+s.FilesToDelete, s.Deleted+s.DeletesFailed+s.SkippedDeletes+s.DeletesNotAttempted; got != want {
		t.Errorf("%d entries to delete, %d have an outcome or none: %+v", want, got, s)
	}
	if v.State == protocol.StateCompleted && (s.Unattempted() > 0 || !v.Answered) {
		t.Errorf("completed, and not all was attempted: %+v", s)
	}
}

// asNobody runs a backup of the pair as an ordinary user, to whom all of it belongs.
func (p pair) asNobody(args ...string) result {
	p.t.Helper()
	treetest.Settle(p.t)
	return p.run(append([]string{"backup", "-i", "--json", "--state-dir", p.state, p.src, p.dst}, args...)...)
}

// run runs a command as an ordinary user.
func (p pair) run(args ...string) result {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(bin, "fsbackup"), args...)
	if treetest.Root() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(p.src))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code says it
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// giveToNobody makes the pair, and what tests run, usable by an ordinary user.
func (p pair) giveToNobody() {
	p.t.Helper()
	if !treetest.Root() {
		return
	}
	base := filepath.Dir(p.src)
	for _, d := range []string{base, filepath.Dir(base), bin} {
		if err := os.Chmod(d, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	err := filepath.WalkDir(base, func(n string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(n, 65534, 65534)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestARunThatStoppedAtTheFirstFailureIsNotTakenForDone(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	const files = 6000
	for i := range files {
		b.File(fmt.Sprintf("d%02d/f%04d", i%40, i), strings.Repeat("x", 1024))
	}
	denied := filepath.Join(p.src, "d07/f0007")
	if err := os.Chmod(denied, 0); err != nil {
		t.Fatal(err)
	}
	p.giveToNobody()
	v := p.asNobody("--fail-fast", "--shard-entries", "50").want(t, 3).job(t)
	closed(t, v)
	if v.State != protocol.StateFailed || v.Stats.NotAttempted == 0 {
		t.Fatalf("the job is %s and attempted all: %+v", v.State, v.Stats)
	}
	// One plain run does all that the first has not, but for what it may not read.
	v = p.asNobody().want(t, 3).job(t)
	closed(t, v)
	if v.Stats.FilesFailed != 1 || v.Stats.NotAttempted > 0 {
		t.Errorf("the second run: %+v", v.Stats)
	}
	if err := os.Chmod(denied, 0o644); err != nil {
		t.Fatal(err)
	}
	p.asNobody().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

// stalled starts a backup into a destination that is too small, and returns once it
// says so.
func (p pair) stalled(args ...string) (end func() result) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(bin, "fsbackup"), append([]string{"backup", "-i", "--json", "--shard-entries", "20", "--state-dir", p.state, p.src, p.dst}, args...)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.Env = append(os.Environ(), "TMPDIR="+p.t.TempDir(), "FSBACKUP_LOG_LEVEL=warn")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	said := make([]byte, 0, 4096)
	buf := make([]byte, 512)
	for !bytes.Contains(said, []byte("no room")) {
		n, err := stderr.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			p.t.Fatalf("the run ended without saying that the destination is full: %s", said)
		}
	}
	return func() result {
		p.t.Helper()
		for {
			n, err := stderr.Read(buf)
			said = append(said, buf[:n]...)
			if err != nil {
				break
			}
		}
		_ = cmd.Wait() // the exit code says it
		return result{cmd.ProcessState.ExitCode(), out.String(), string(said)}
	}
}

// What a job was admitted with does not stay as it is while the job runs. It ends,
// names the file, and one plain run does the rest.
func TestControlFilesThatGoOrChangeMidwayEndTheJob(t *testing.T) {
	if !treetest.Root() {
		t.Skip("fills a small file system, which needs root")
	}
	for name, harm := range map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"edited": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			must(t, err)
			st, err := os.Stat(path)
			must(t, err)
			i := len(data) - 3 // of the last entry
			data[i] ^= 1
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(data[i:], int64(i))
			must(t, err)
			must(t, f.Close())
			must(t, os.Chtimes(path, st.ModTime(), st.ModTime()))
		},
		"appended to": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString("f,mm,,,,,never\n")
			must(t, err)
			must(t, f.Close())
		},
		"cut short": func(t *testing.T, path string) {
			st, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, st.Size()-40))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, 71, 600)
			treetest.At(t, p.src).File("zz/large", strings.Repeat("x", 6<<20))
			room := p.smallDestination()
			room(1 << 20)
			end := p.stalled()
			ctrl, err := filepath.Glob(filepath.Join(p.state, "*", "scans", "*", "ctrl", "*"))
			if err != nil || len(ctrl) == 0 {
				t.Fatalf("no control files: %v", err)
			}
			for _, path := range ctrl {
				harm(t, path)
			}
			room(1 << 30)
			r := end().want(t, 3)
			v := r.job(t)
			closed(t, v)
			if v.State != protocol.StateFailed || !strings.Contains(v.Reason, "/ctrl/") {
				t.Errorf("the job is %s: %s", v.State, v.Reason)
			}
			marks, err := filepath.Glob(filepath.Join(p.dst, ".fsbackup-*"))
			if err != nil || len(marks) > 0 {
				t.Errorf("its mark is left: %v, %v", marks, err)
			}
			p.backup().want(t, 0)
			treetest.Same(t, p.src, p.dst)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever ends a run, and in whichever state it leaves the history: one plain run
// makes the destination identical.
func TestOnePlainRunAfterAnyEndMakesTheDestinationIdentical(t *testing.T) {
	for seed := range seeds(t, 2) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, uint64(seed)+100, 1500)
			r := rand.New(rand.NewPCG(uint64(seed), 5))
			room := p.smallDestination()
			for range 4 {
				for range 1 + r.IntN(2) {
					p.endBadly(r, room)
					room(1 << 30)
					treetest.Mutate(t, p.src, r, 40)
				}
				v := p.backup("--max-delete", "100%").want(t, 0).job(t)
				closed(t, v)
				treetest.Same(t, p.src, p.dst)
			}
		})
	}
}

// endBadly has one run end in one of the ways in which runs end.
func (p pair) endBadly(r *rand.Rand, room func(int64)) {
	p.t.Helper()
	how := r.IntN(4)
	switch how {
	case 0: // at the first of some failures
		open := p.closeSome(r)
		p.ends(r, true, "--fail-fast", "--shard-entries", fmt.Sprint(5+r.IntN(60)))
		open()
	case 1: // killed
		p.killed(time.Duration(20+r.IntN(500))*time.Millisecond, false)
	case 2: // with failures
		open := p.closeSome(r)
		p.ends(r, true)
		open()
	case 3: // interrupted, with the destination full or not
		if r.IntN(2) == 0 {
			room(64 << 10)
		}
		p.interrupted(time.Duration(20+r.IntN(500)) * time.Millisecond)
	}
	p.t.Logf("a run ended in way %d", how)
}

// ends runs a backup that may fail; a weak one may not read what its user may not.
func (p pair) ends(_ *rand.Rand, weak bool, args ...string) {
	p.t.Helper()
	args = append([]string{filepath.Join(bin, "fsbackup"), "backup", "-i", "--json", "--max-delete", "100%", "--state-dir", p.state, p.src, p.dst}, args...)
	if weak && treetest.Root() {
		args = append([]string{"setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"}, args...)
	}
	cmd := exec.CommandContext(p.t.Context(), args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code says it
	res := result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	if res.code != 0 && res.code != 3 {
		p.t.Fatalf("neither completed nor failed: %v", res)
	}
	closed(p.t, res.job(p.t))
}

func (p pair) interrupted(after time.Duration) {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "fsbackup"), "backup", "-i", "--max-delete", "100%", "--shard-entries", "13", "--state-dir", p.state, p.src, p.dst)
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	stop := time.AfterFunc(after, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer stop.Stop()
	_ = cmd.Wait() // interrupted, or not
}

// TestWhatCannotBeReadFailsTheRun in words, in JSON and in the exit code, whichever
// command meets it.
func TestWhatCannotBeReadFailsTheRun(t *testing.T) {
	if !treetest.Root() {
		t.Skip("makes a directory unreadable for another user, which needs root")
	}
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("closed/f", "x")
	b.File("open/f", "x")
	p.giveToNobody()
	if err := os.Chmod(b.Path("closed"), 0); err != nil {
		t.Fatal(err)
	}
	restored := filepath.Join(filepath.Dir(p.dst), "restored")
	for name, args := range map[string][]string{
		"backup": {"backup", "--no-state", p.src, p.dst}, "verify": {"verify", p.src, p.dst}, "restore": {"restore", p.src, restored},
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			p.t = t
			if name == "verify" {
				p.run("backup", "--no-state", p.src, p.dst).want(t, 3)
			}
			r := p.run(args...).want(t, 3)
			if strings.Contains(r.stdout, "completed") || !strings.Contains(r.stdout, ": failed (") || !strings.Contains(r.stdout, "1 entry could not be read") || !strings.Contains(r.stdout, "not read: 1\n") {
				t.Errorf("in words: %v", r)
			}
			if strings.Count(r.stderr, `"closed"`) != 1 {
				t.Errorf("it is not named once: %v", r)
			}
			var o struct {
				Status       string `json:"status"`
				ExitCode     int    `json:"exit_code"`
				ProblemCount int    `json:"problem_count"`
				Job          struct {
					State string `json:"state"`
				} `json:"job"`
			}
			r = p.run(append(args, "--json")...).want(t, 3)
			if err := json.Unmarshal([]byte(r.stdout), &o); err != nil || o.Status != "failed" || o.ExitCode != 3 || o.ProblemCount != 1 || o.Job.State != "failed" {
				t.Errorf("as JSON: %v, %v", err, r)
			}
			r = p.run(append(args, "-q")...).want(t, 3)
			if r.stdout != "" || !strings.Contains(r.stderr, "fsbackup: failed: ") || !strings.HasSuffix(r.stderr, "1 entry could not be read\n") || !strings.Contains(r.stderr, `"closed"`) {
				t.Errorf("with -q: %v", r)
			}
		})
	}
}
