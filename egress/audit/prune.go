package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Stored is a log in a directory of logs, with its older files and their heads.
type Stored struct {
	File  string    `json:"file"`
	Size  int64     `json:"size"`  // of all of them, in bytes
	Last  time.Time `json:"last"`  // when it was written to
	Lives bool      `json:"lives"` // a gateway writes it
}

// List returns the logs in dir, the one that was written to longest ago first.
func List(dir string) ([]Stored, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("cannot list audit logs: %w", err)
	}
	var list []Stored
	for _, file := range files {
		if fi, err := os.Lstat(file); err == nil && !fi.Mode().IsRegular() {
			continue // somebody's: a gateway makes none such, nor writes to it
		}
		s, err := stored(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list audit logs: %w", err)
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Stored) int { return cmp.Or(a.Last.Compare(b.Last), cmp.Compare(a.File, b.File)) })
	return list, nil
}

func stored(file string) (s Stored, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return s, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return s, err
	}
	s = Stored{File: file, Last: fi.ModTime(), Lives: unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil}
	names, err := s.names()
	for _, name := range names {
		if fi, err := os.Lstat(name); err == nil {
			s.Size += fi.Size()
		}
	}
	return s, err
}

// names are the files that a log consists of, the one of its name last.
func (s Stored) names() (names []string, err error) {
	parts, err := Parts(s.File)
	for _, part := range parts {
		names = append(names, HeadFile(part), part)
	}
	return names, err
}

// Remove removes a log that nobody writes.
func (s Stored) Remove() error {
	f, err := os.OpenFile(s.File, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("cannot remove the audit log: %w", err)
	}
	defer f.Close() // until then no gateway takes it for its own
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("cannot remove the audit log %s: a gateway writes it: %w", s.File, err)
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the audit log: %w", err)
		}
	}
	return nil
}
