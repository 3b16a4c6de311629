// Command fsbackup backs up file sets, alone or with a cluster of workers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"

	"github.com/fsbackup/fsbackup/cmd/internal/args"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/telemetry"
)

// version is set by the linker.
var version string

// buildVersion is the version that the linker set, or else that of the module.
func buildVersion() string {
	if version == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			return info.Main.Version
		}
	}
	return version
}

// exit is an exit code without a message of its own: everything has been said.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// errFailures is the code of a job that ended with failed entries.
const errFailures exit = 3

// app is what every command gets.
type app struct {
	ctx       context.Context //nolint:containedctx // a command is one call
	stdout    io.Writer
	stderr    io.Writer
	log       *slog.Logger
	telemetry *telemetry.Telemetry
	cli       *cli
	getenv    func(string) string
}

type cli struct {
	LogLevel  string `help:"Log level: debug, info, warn, error." default:"error" env:"FSBACKUP_LOG_LEVEL" enum:"debug,info,warn,error"`
	LogFormat string `help:"Log format: text, json." default:"text" env:"FSBACKUP_LOG_FORMAT" enum:"text,json"`

	Backup   backupCmd   `cmd:"" help:"Back a directory tree up, in this process."`
	Run      runCmd      `cmd:"" help:"Execute control files that exist already, in this process."`
	Restore  restoreCmd  `cmd:"" help:"Bring a backup, or parts of it, back."`
	Verify   verifyCmd   `cmd:"" help:"Compare a backup with its source, and change neither."`
	Scans    scansCmd    `cmd:"" help:"Look at what is kept from run to run."`
	Scan     scanCmd     `cmd:"" help:"Write control and meta files of a directory tree."`
	Submit   submitCmd   `cmd:"" help:"Give control files to a cluster as a job."`
	Status   statusCmd   `cmd:"" help:"Show a job."`
	Watch    watchCmd    `cmd:"" help:"Follow a job to its end; exits with the job's code."`
	Failures failuresCmd `cmd:"" help:"List what a job could not do."`
	Cancel   cancelCmd   `cmd:"" help:"Stop a job."`
	Pause    pauseCmd    `cmd:"" help:"Let a job publish no more shards until resume."`
	Resume   resumeCmd   `cmd:"" help:"Let a paused job go on."`
	Jobs     jobsCmd     `cmd:"" help:"List jobs, newest first."`
	Forget   forgetCmd   `cmd:"" help:"Forget a job that has ended, with its results and failures."`
	Workers  workersCmd  `cmd:"" help:"List workers."`
	Drain    drainCmd    `cmd:"" help:"Have a worker finish what it has, take nothing more, and leave."`
	Version  versionCmd  `cmd:"" help:"Show the version."`
	Help     helpCmd     `cmd:"" help:"Show the help of a command, or of a topic: patterns."`

	Completion kongcompletion.Completion `cmd:"" help:"Print how to set up shell completion."`
}

const description = `fsbackup backs up file sets: copies, deletes, hard links and directory
metadata, as control files ask for them, on one host or over a cluster.

  fsbackup backup /home /mnt/backup          back a tree up, nothing to set up
  fsbackup verify /home /mnt/backup          compare both, byte by byte
  fsbackup scan /home --out /tmp/scan        only write its control files
  fsbackup help patterns                     what is taken and what is left out
  fsbackup submit --control /tmp/scan --meta /tmp/scan --source /home --destination /mnt/backup

Exit codes: 0 completed; 3 something failed, differs or was not attempted; 64 wrong usage or
input; 65 damaged input; 66 not found; 69 cluster not reachable; 70 internal
error; 75 temporary failure, try again; 77 not permitted; 78 stopped by a guard;
130 cancelled or interrupted.`

func main() {
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments.
func run(line []string, getenv func(string) string, stdout, stderr io.Writer) (code int) {
	var c cli
	exited := -1
	parser, err := args.New(&c, kong.Name("fsbackup"), kong.Description(description), kong.UsageOnError(),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code; panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		fmt.Fprintf(stderr, "fsbackup: %v\n", err)
		return fault.Internal.ExitCode()
	}
	defer func() {
		// kong exits from within Parse for --help; everything else passes on.
		if r := recover(); r != nil {
			if exited < 0 {
				panic(r)
			}
			code = exited
		}
	}()
	kongcompletion.Register(parser)
	kctx, err := parser.Parse(line)
	if err != nil {
		fmt.Fprintf(stderr, "fsbackup: %v (see fsbackup --help)\n", err)
		return fault.Invalid.ExitCode()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "fsbackup", Version: buildVersion(), LogLevel: c.LogLevel, LogFormat: c.LogFormat, LogWriter: stderr, Getenv: getenv,
	})
	if err != nil {
		return report(stderr, err)
	}
	defer func() { _ = tel.Shutdown(ctx) }() // logs what it could not send
	a := &app{ctx: ctx, stdout: stdout, stderr: stderr, log: tel.Logger(), telemetry: tel, cli: &c, getenv: getenv}
	err = kctx.Run(a)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = fault.New(fault.Canceled, "interrupted")
	}
	return report(stderr, err)
}

// report prints err on one line and returns the exit code that it means.
func report(stderr io.Writer, err error) int {
	if _, said := errors.AsType[exit](err); err != nil && !said {
		fmt.Fprintf(stderr, "fsbackup: %s\n", oneLine(err))
	}
	return exitCode(err)
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	fmt.Fprintf(a.stdout, "fsbackup %s\n", buildVersion())
	return nil
}
