// Package archtest holds the architecture of this module as a test: which
// package may import which, and what no package does.
//
// The table in arch_test.go is the reference. An import that it does not list is
// refused, and so is a package without a row; whoever needs either changes the
// table in the same commit and says there why.
package archtest
