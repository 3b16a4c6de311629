package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// plainEvery is the pause between lines where there is no terminal.
const plainEvery = 5 * time.Second

// progress shows how far a scan and a job are: a bar on a terminal, a line now
// and then elsewhere. Its methods may be called from any goroutine.
type progress struct {
	out   io.Writer
	quiet bool
	tty   bool
	text  atomic.Pointer[string] // read by the bar's own goroutine, which must not wait for mu

	mu       sync.Mutex // guards what follows
	bars     *mpb.Progress
	bar      *mpb.Bar
	stalled  string
	lastLine time.Time
	lostSaid bool
}

func newProgress(out io.Writer, quiet bool) *progress {
	p := &progress{out: out, quiet: quiet, lastLine: now()}
	if f, ok := out.(*os.File); ok {
		p.tty = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// scan shows a scan.
func (p *progress) scan(s scanner.Stats) {
	text := fmt.Sprintf("scan: %d directories, %d files, %s", s.Dirs, s.Files, bytesText(s.Bytes))
	if s.Walked {
		text = fmt.Sprintf("scan: %d of %d entries written", s.Written, s.Dirs+s.Files)
	}
	p.show(text, 0, 0, "")
}

// job shows a job.
func (p *progress) job(v protocol.JobView) {
	s := v.Stats
	text := string(v.State)
	if v.Phase != 0 && v.State == protocol.StateRunning {
		text = v.Phase.String()
	}
	files, bytes := progressOf(v)
	rate := s.BytesPerSec
	for _, f := range v.Large {
		bytes += uint64(f.Done)
	}
	if len(v.Large) > 0 && v.Seconds >= 1 {
		rate = uint64(float64(bytes) / v.Seconds)
	}
	text = fmt.Sprintf("%s: %d/%d files, %s/%s, %s/s", text, files, s.FilesToBackup, bytesText(bytes), bytesText(s.BytesToBackup), bytesText(rate))
	if v.Failures > 0 {
		text += fmt.Sprintf(", %d failed", v.Failures)
	}
	if len(v.Large) > 0 {
		f := v.Large[0]
		text += fmt.Sprintf("; %s: %s/%s", nameOf(f.Path), bytesText(uint64(f.Done)), bytesText(uint64(f.Size)))
		if f.Seconds >= 1 {
			text += fmt.Sprintf(", %s/s", bytesText(uint64(float64(f.Done)/f.Seconds)))
		}
	}
	// A file weighs like 64 KiB of data: what its creation costs beside them.
	const perFile = 64 << 10
	done := bytes + files*perFile
	total := s.BytesToBackup + s.FilesToBackup*perFile
	if eta := eta(v.Seconds, done, total); eta != "" {
		text += ", " + eta + " left"
	}
	p.show(text, done, total, v.Stalled)
}

// nameOf returns the end of a path, for a line of progress.
func nameOf(path string) string {
	const most = 40
	name := []rune(strings.ToValidUTF8(filepath.Base(path), "?"))
	if len(name) > most {
		name = append([]rune("..."), name[len(name)-most+3:]...)
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(name))
}

// submission shows how control files are handed over.
func (p *progress) submission(s client.Step) {
	if s.Lost != nil {
		p.lost(s.Lost)
		return
	}
	p.show(fmt.Sprintf("%s control files: %d of %d", s.Doing, s.Done, s.Of), uint64(s.Done), uint64(s.Of), "")
}

// progressOf returns how many files, and bytes of them, a job has done.
func progressOf(v protocol.JobView) (files, bytes uint64) {
	if v.Spec.VerifyOnly {
		return v.Stats.FilesVerified, v.Stats.BytesVerified
	}
	return v.Stats.FilesCopied, v.Stats.BytesCopied
}

func eta(seconds float64, done, total uint64) string {
	if seconds < 2 || done == 0 || done >= total {
		return ""
	}
	return durationText(float64(int(seconds * float64(total-done) / float64(done))))
}

// lost says that the cluster cannot be reached.
func (p *progress) lost(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lostSaid || p.quiet {
		return
	}
	p.lostSaid = true
	p.say(fmt.Sprintf("waiting for the cluster: %s", oneLine(err)))
}

// say prints a line that stays. It is called with the lock held.
func (p *progress) say(line string) {
	if p.bars != nil {
		_, _ = p.bars.Write([]byte(line + "\n")) // an error of the terminal shows itself
		return
	}
	fmt.Fprintln(p.out, line)
}

func (p *progress) show(text string, done, total uint64, stalled string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lostSaid = false
	if stalled != p.stalled {
		if p.stalled = stalled; stalled != "" {
			p.say("stalled: " + stalled)
		}
	}
	if p.quiet {
		return
	}
	p.text.Store(&text)
	if !p.tty {
		if now().Sub(p.lastLine) >= plainEvery {
			p.lastLine = now()
			fmt.Fprintln(p.out, text)
		}
		return
	}
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithAutoRefresh(), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(0,
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Percentage(decor.WCSyncWidth)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
				return *p.text.Load()
			})),
		)
	}
	if total > 0 {
		p.bar.SetTotal(int64(max(total, done+1)), false)
		p.bar.SetCurrent(int64(done))
	}
}

// done takes the bar away.
func (p *progress) done() {
	p.mu.Lock()
	bars, bar := p.bars, p.bar
	p.bars, p.bar = nil, nil
	p.mu.Unlock()
	if bars != nil {
		bar.Abort(true)
		bars.Wait()
	}
}
