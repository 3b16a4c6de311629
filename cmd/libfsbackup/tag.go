//go:build libfsbackup

package main

// #cgo CFLAGS: -DFSBACKUP_LIBRARY
import "C"
