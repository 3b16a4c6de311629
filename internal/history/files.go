package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := rawjson.Unmarshal(data, v); err != nil {
		return &fault.Error{Kind: fault.Corrupt, Op: "read state", Path: path, Err: err, Hint: "remove its directory to begin anew with a full backup"}
	}
	return nil
}

// writeJSON replaces a file whole and durably.
func writeJSON(path string, v any) error {
	data, err := rawjson.MarshalIndent(v, "", "  ")
	if err != nil {
		return fault.New(fault.Internal, "encode %s: %w", path, err)
	}
	if err := replace(path, append(data, '\n')); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "write state", Path: path, Err: cause(err)}
	}
	return nil
}

func replace(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// cause is the errno of a path error: the fault names operation and path.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
