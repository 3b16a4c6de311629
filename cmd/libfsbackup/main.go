// Command libfsbackup is no command: built with -buildmode=c-shared or c-archive
// it is the C library whose interface include/fsbackup.h describes.
//
// api.c has the exported functions, bridge.go what they call in Go. The rest
// knows no C: an instance turns into a job of one control file phase, which runs
// on a cluster within the process or on one that the environment names.
package main

/*
#cgo CFLAGS: -I${SRCDIR}/../../include -std=gnu11 -Wall
#cgo LDFLAGS: -lpthread
#include <stdlib.h>
#include "bridge.h"
*/
import "C"

import "unsafe"

// Set by the linker: the version of the library, which follows semantic versioning, and
// the commit that it was built from.
var (
	libVersion = "0.0.0"
	version    = "unknown"
)

// process is what this process holds of the library: C passes no context.
var process = newLibrary()

// Initialised after all that is imported, so that nothing of the runtime's own
// start follows.
var _ = runtimeUp()

func runtimeUp() bool {
	C.bridge_runtime_up()
	return true
}

// removeAtExit has a directory removed when the process exits without having
// destroyed its instances.
func removeAtExit(dir string) {
	c := C.CString(dir)
	defer C.free(unsafe.Pointer(c))
	C.bridge_remove_at_exit(c)
}

func main() {}
