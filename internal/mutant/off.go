//go:build !chaosmutant

package mutant

// Off reports whether a defence is switched off: never.
func Off(Defence) bool { return false }
