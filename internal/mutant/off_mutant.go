//go:build chaosmutant

package mutant

import "os"

// off is the defence that this process does without.
var off = Defence(os.Getenv("FSBACKUP_MUTANT"))

// Off reports whether a defence is switched off.
func Off(d Defence) bool { return d == off }
