package archtest

import (
	"slices"
	"strings"
	"testing"
)

// row says what one package may import of this module.
type row struct {
	pkg string // below the module; a trailing "/..." means its sub-packages too, which only they import
	may string // separated by blanks; "*" = everything below cmd
}

// imports is the architecture, leaves first: a package imports rows above its own
// only (the test refuses a table in which it does not).
//
// Missing on purpose: engine -> protocol, bus (it executes a batch and knows no
// cluster); coordinator <-> worker (they meet on the bus only); anything but cmd
// -> telemetry (who sets up is who shuts down; services get providers).
var imports = []row{
	{"internal/archtest", ""},
	{"internal/treetest", ""},             // trees for tests
	{"internal/mutant", ""},               // defences that a build for tests can do without
	{"internal/fault", ""},                // kinds of errors; everybody's leaf
	{"internal/rawjson", ""},              // JSON that keeps bytes
	{"internal/entry", ""},                // operations, metadata and counts of entries
	{"internal/host", "internal/fault"},   // who a process is among hosts
	{"internal/pace", ""},                 // how many operations at once are worthwhile
	{"internal/web", ""},                  // embedded assets
	{"internal/telemetry/instrument", ""}, // OpenTelemetry's interfaces only
	{"internal/telemetry", "internal/fault internal/rawjson internal/telemetry/instrument"},

	{"internal/controlfile/...", "internal/fault internal/entry"},
	{"internal/scanner/...", "internal/fault internal/rawjson internal/entry internal/controlfile internal/pace"},
	{"internal/engine/...", "internal/fault internal/entry internal/pace"},
	{"internal/protocol", "internal/fault internal/rawjson internal/entry"},
	{"internal/shard", "internal/fault internal/entry internal/controlfile internal/protocol"},
	{"internal/state", "internal/fault internal/rawjson internal/entry internal/mutant internal/protocol"},

	{"internal/bus/...", "internal/fault internal/rawjson internal/mutant internal/protocol internal/telemetry/instrument"},
	{"internal/api", "internal/fault internal/rawjson internal/protocol internal/bus internal/web"},

	// The four parts of the coordinator: all know the records, and not each other.
	{"internal/coordinator/records", `internal/fault internal/rawjson internal/controlfile internal/protocol internal/state internal/bus`},
	{"internal/coordinator/publisher", `internal/fault internal/rawjson internal/entry internal/mutant internal/telemetry/instrument internal/controlfile
		internal/protocol internal/shard internal/state internal/bus internal/coordinator/records`},
	{"internal/coordinator/folder", "internal/fault internal/protocol internal/state internal/bus internal/coordinator/records"},
	{"internal/coordinator/roster", "internal/fault internal/rawjson internal/host internal/mutant internal/protocol internal/state internal/bus internal/coordinator/records"},
	{"internal/coordinator", `internal/fault internal/rawjson internal/host internal/entry internal/controlfile internal/protocol internal/shard internal/state internal/bus internal/api
		internal/coordinator/records internal/coordinator/publisher internal/coordinator/folder internal/coordinator/roster`},
	{"internal/worker/...", `internal/fault internal/rawjson internal/host internal/entry internal/mutant internal/telemetry/instrument internal/engine
		internal/protocol internal/bus`},
	// A client talks to a cluster, or starts one in the process.
	{"internal/client", `internal/fault internal/rawjson internal/mutant internal/shard internal/telemetry/instrument internal/controlfile internal/scanner
		internal/engine internal/protocol internal/bus internal/api internal/coordinator internal/worker`},

	// What is known of a source and its destination from run to run.
	{"internal/history", "internal/fault internal/rawjson internal/protocol internal/scanner"},

	{"internal/clustertest", "*"},
	{"internal/chaos", ""}, // tests only: they start processes

	{"cmd/internal/args", ""}, // command lines, byte by byte
	{"cmd/coordinator", `cmd/internal/args internal/fault internal/telemetry internal/protocol internal/bus internal/api
		internal/web internal/coordinator`},
	{"cmd/worker", "cmd/internal/args internal/fault internal/telemetry internal/protocol internal/bus internal/engine internal/worker"},
	{"cmd/fsbackup", `cmd/internal/args internal/fault internal/rawjson internal/entry internal/telemetry internal/controlfile internal/scanner internal/history
		internal/protocol internal/bus internal/engine internal/api internal/web internal/client internal/host`},
	{"cmd/libfsbackup", `internal/fault internal/host internal/controlfile internal/protocol internal/bus
		internal/engine internal/client`},
	{"bench/...", "*"}, // measures any part on its own
}

// only says who may import a module or standard package, tests included unless
// a row says otherwise. A path stands for everything below it.
var only = []struct {
	path, why string
	by        []string
	testsToo  bool // tests are free to
}{
	{"github.com/nats-io", "bus alone knows the client and the server", []string{"internal/bus"}, false},
	{"github.com/synadia-io", "bus alone knows the client and the server", []string{"internal/bus"}, false},
	{"flag", "only commands read flags", []string{"cmd", "bench"}, true},
	{"github.com/alecthomas/kong", "only cmd reads flags", []string{"cmd"}, false},
	{"github.com/jotaen/kong-completion", "only cmd reads flags", []string{"cmd"}, false},
	{"github.com/hashicorp/go-memdb", "state alone knows the database", []string{"internal/state"}, false},
	{"github.com/prometheus", "telemetry alone exports", []string{"internal/telemetry"}, true},
	{"go.opentelemetry.io/otel/sdk", "telemetry alone exports", []string{"internal/telemetry"}, true},
	{"go.opentelemetry.io/otel/exporters", "telemetry alone exports", []string{"internal/telemetry"}, false},
	{"go.opentelemetry.io/contrib", "telemetry alone exports", []string{"internal/telemetry"}, false},
	{"github.com/vbauerster/mpb", "progress bars are for people", []string{"cmd"}, false},
	{"encoding/json", "it changes what is not UTF-8, as paths may be; use internal/rawjson", []string{"internal/rawjson"}, true},
	{"C", "cgo only where C calls us", []string{"cmd/libfsbackup"}, true},
}

// pure are packages without I/O, clock and chance: what they do follows from
// their arguments, so that a replay gives the same state. The cutter of shards
// reads control files, and is otherwise the same.
var (
	pure      = []string{"internal/state", "internal/protocol"}
	clockless = append([]string{"internal/shard"}, pure...)
)

func TestImportsFollowTheTable(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		r, ok := rowOf(p.path)
		if !ok {
			t.Errorf("%s: has no row in the table; add one that says what it may import", p.path)
			continue
		}
		for _, dep := range p.imports {
			if dep.module && !r.allows(p.path, dep.path) {
				t.Errorf("%s imports %s: the table refuses it", p.path, dep.path)
			}
		}
		for _, dep := range p.testImports {
			if !dep.module {
				continue
			}
			// Tests may reach further, but not across what is kept apart, nor up.
			for _, apart := range [][2]string{
				{"internal/coordinator", "internal/worker"},
				{"internal/worker", "internal/coordinator"},
				{"internal/engine", "internal/protocol"},
				{"internal/engine", "internal/bus"},
			} {
				if within(p.path, apart[0]) && within(dep.path, apart[1]) {
					t.Errorf("a test of %s imports %s: test both in internal/clustertest", p.path, dep.path)
				}
			}
			if within(dep.path, "cmd") && !within(p.path, "cmd") {
				t.Errorf("a test of %s imports %s: nothing imports cmd", p.path, dep.path)
			}
		}
	}
}

func TestTheTableHasNoUpwardArrow(t *testing.T) {
	t.Parallel()
	above := map[string]bool{}
	for _, r := range imports {
		name := strings.TrimSuffix(r.pkg, "/...")
		if above[name] {
			t.Errorf("%s: two rows", name)
		}
		for dep := range strings.FieldsSeq(r.may) {
			if dep != "*" && !above[dep] {
				t.Errorf("%s -> %s: not a row above it", name, dep)
			}
		}
		above[name] = true
	}
}

func TestForeignPackagesHaveTheirOwners(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, o := range only {
			owner := slices.ContainsFunc(o.by, func(by string) bool { return within(p.path, by) })
			deps := p.imports
			if !o.testsToo {
				deps = slices.Concat(p.imports, p.testImports)
			}
			for _, dep := range deps {
				if !owner && !dep.module && within(dep.path, o.path) {
					t.Errorf("%s imports %s: %s (%s)", p.path, dep.path, o.why, strings.Join(o.by, ", "))
				}
			}
		}
		if slices.Contains(pure, p.path) {
			for _, dep := range p.imports {
				for _, io := range []string{"os", "net", "io/ioutil", "syscall", "golang.org/x/sys", "math/rand", "math/rand/v2", "crypto/rand"} {
					// net/netip and the like are values; net itself is I/O.
					if dep.path == io || (io != "net" && within(dep.path, io)) {
						t.Errorf("%s imports %s: it has no I/O and no chance; take the value as an argument", p.path, dep.path)
					}
				}
			}
		}
	}
}

// calls are the selectors of packages that are refused, and where not.
var calls = []struct {
	what    string // package path, a dot, names separated by |
	instead string
	refused func(pkg string) bool
}{
	{"os.Getenv|LookupEnv|Environ|ExpandEnv|Setenv|Unsetenv", "only cmd reads the environment; take a Config", belowCmd},
	{"os.Args|Exit", "only cmd has arguments and exit codes", belowCmd},
	{"os/signal.Notify|NotifyContext", "only cmd handles signals", belowCmd},
	{"context.TODO|Background", "take a context from the caller", belowCmd},
	{
		"time.Now|Since|Until|After|AfterFunc|Tick|NewTimer|NewTicker|Sleep",
		"it has no clock; take the time as an argument",
		func(pkg string) bool { return slices.Contains(clockless, pkg) },
	},
	{
		"go.opentelemetry.io/otel.Tracer|Meter|SetTracerProvider|GetTracerProvider|SetMeterProvider|GetMeterProvider|SetTextMapPropagator|GetTextMapPropagator",
		"no process-wide registry; take the providers", everywhere,
	},
	{
		"github.com/prometheus/client_golang/prometheus.DefaultRegisterer|DefaultGatherer|Register|MustRegister",
		"no process-wide registry; use one of your own", everywhere,
	},
	{"github.com/prometheus/client_golang/prometheus/promhttp.Handler", "no process-wide registry; use HandlerFor", everywhere},
	{"github.com/alecthomas/kong.New|Must|Parse", "it changes what is not UTF-8; use cmd/internal/args", func(pkg string) bool { return pkg != "cmd/internal/args" }},
	{"log/slog.NewJSONHandler", "it changes what is not UTF-8; use telemetry.NewLogger", func(pkg string) bool { return pkg != "internal/telemetry" }},
	{"net/http.DefaultServeMux|Handle|HandleFunc|DefaultClient|Get|Post|Head", "no process-wide mux or client", everywhere},
	{"log.Print|Printf|Println|Fatal|Fatalf|Fatalln|Panic|Panicf|Panicln", "use the slog.Logger that was passed in", everywhere},
	{"log/slog.Default|SetDefault|Debug|Info|Warn|Error|DebugContext|InfoContext|WarnContext|ErrorContext", "use the slog.Logger that was passed in", everywhere},
}

func everywhere(string) bool { return true }
func belowCmd(pkg string) bool {
	return !within(pkg, "cmd") && !within(pkg, "bench") && pkg != "internal/clustertest" && pkg != "internal/mutant"
}

func TestNoPackageReachesForGlobals(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.files {
			if f.test || f.generated {
				continue
			}
			for _, s := range f.selectors {
				for _, c := range calls {
					pkg, names := split(c.what)
					if s.pkg == pkg && slices.Contains(names, s.name) && c.refused(p.path) {
						t.Errorf("%s: %s.%s in %s: %s", s.pos, s.pkg, s.name, p.path, c.instead)
					}
				}
			}
		}
	}
}

func TestFilesAreReadable(t *testing.T) {
	t.Parallel()
	const most = 1000
	for _, p := range packages(t) {
		documented := false
		for _, f := range p.files {
			documented = documented || (f.packageDoc && !f.test)
			if f.generated {
				continue
			}
			if f.lines > most {
				t.Errorf("%s: %d lines, %d are the most: split it by subject", f.name, f.lines, most)
			}
			for _, pos := range f.inits {
				t.Errorf("%s: func init: do it in the constructor", pos)
			}
		}
		if !documented && !p.testOnly {
			t.Errorf("%s: no package comment; say in doc.go what it owns", p.path)
		}
	}
}

func rowOf(pkg string) (row, bool) {
	for _, r := range imports {
		name, tree := strings.CutSuffix(r.pkg, "/...")
		if pkg == name || (tree && within(pkg, name)) {
			return r, true
		}
	}
	return row{}, false
}

// allows reports whether the row of pkg has dep, or dep is of the same tree.
func (r row) allows(pkg, dep string) bool {
	name, tree := strings.CutSuffix(r.pkg, "/...")
	if tree && within(dep, name) && within(pkg, name) {
		return true
	}
	may := strings.Fields(r.may)
	if slices.Contains(may, "*") {
		return !within(dep, "cmd")
	}
	return slices.Contains(may, dep)
}

// within reports whether path is tree or below it.
func within(path, tree string) bool {
	rest, ok := strings.CutPrefix(path, tree)
	return ok && (rest == "" || rest[0] == '/')
}

// split takes "a/b.X|Y" apart into "a/b" and [X Y].
func split(what string) (pkg string, names []string) {
	i := strings.LastIndex(what, ".")
	return what[:i], strings.Split(what[i+1:], "|")
}
