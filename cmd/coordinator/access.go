package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Files of the store with the tokens that are made where none is given.
const (
	operatorFile = "http-token"
	readerFile   = "http-read-token"
)

// access decides who may use the HTTP API on a listener. Beyond this host nobody does
// without a token: where none is given, both are made and kept in the store, and made
// says where.
func access(cfg *config, getenv func(string) string, at net.Addr) (a api.Access, made string, err error) {
	a.Names = cfg.HTTPNames
	for _, t := range []struct {
		token     *string
		env, file string
	}{
		{&a.Operator, "FSBACKUP_HTTP_TOKEN", cfg.HTTPToken},
		{&a.Reader, "FSBACKUP_HTTP_READ_TOKEN", cfg.HTTPReadToken},
	} {
		*t.token = strings.TrimSpace(getenv(t.env))
		if t.file == "" {
			continue
		}
		if *t.token, err = readToken(t.file); err != nil {
			return a, "", err
		}
	}
	tcp, ok := at.(*net.TCPAddr)
	if a.Operator != "" || a.Reader != "" || ok && tcp.IP.IsLoopback() {
		return a, "", nil
	}
	made = filepath.Join(cfg.Store, operatorFile)
	if a.Operator, err = keepToken(made); err != nil {
		return a, "", err
	}
	a.Reader, err = keepToken(filepath.Join(cfg.Store, readerFile))
	return a, made, err
}

// readToken reads a token from a file.
func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "read the token in", Path: path, Err: pe.Err, Hint: "name a file that this user may read"}
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 || strings.ContainsAny(token, " \t\r\n") {
		return "", &fault.Error{Kind: fault.Invalid, Op: "read the token in", Path: path, Err: errors.New("it is not one word of at least 16 bytes"),
			Hint: "make one: openssl rand -hex 32"}
	}
	return token, nil
}

// keepToken reads a token that an earlier start has made, or makes it.
func keepToken(path string) (string, error) {
	if _, err := os.Lstat(path); err == nil {
		return readToken(path)
	}
	token := rand.Text() + rand.Text()
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "keep the token in", Path: path, Err: errors.Unwrap(err), Hint: "make the store writable"}
	}
	return token, nil
}
