package audit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A log is listed with all that belongs to it and removed with that alone; one
// that is written is not.
func TestStoredLogs(t *testing.T) {
	dir := t.TempDir()
	old, live := filepath.Join(dir, "old.jsonl"), filepath.Join(dir, "live.jsonl")
	size := int64(0)
	for _, file := range []string{old + ".1", old} {
		write(t, file, 2)
		for _, name := range []string{file, HeadFile(file)} {
			fi, err := os.Stat(name)
			must(t, err)
			size += fi.Size()
		}
	}
	must(t, os.Chtimes(old, time.Time{}, time.Now().Add(-time.Hour)))
	must(t, os.WriteFile(old+".notes", nil, 0o600)) // somebody's
	// No logs, and in nobody's way.
	must(t, os.Symlink(old, filepath.Join(dir, "link.jsonl")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo.jsonl"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "dir.jsonl"), 0o700))
	l, err := Open(live)
	must(t, err)
	must(t, l.Append(NewChange("live", KindSegment, "sandbox attached")))

	list, err := List(dir)
	must(t, err)
	if len(list) != 2 || list[0].File != old || list[0].Size != size || list[0].Lives || list[1].File != live || !list[1].Lives {
		t.Fatalf("the logs are %+v; the old one has %d bytes", list, size)
	}
	must(t, list[0].Remove())
	if err := list[1].Remove(); err == nil {
		t.Error("a log that is written was removed")
	}
	must(t, l.Append(NewChange("live", KindEnd, "sandbox ended")))
	must(t, l.Close())
	left, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if want := []string{"dir.jsonl", "fifo.jsonl", "link.jsonl", "live.jsonl", "live.jsonl.head", "old.jsonl.notes"}; !slices.Equal(names, want) {
		t.Errorf("there are left: %q", names)
	}
	if err := list[0].Remove(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed again: %v", err)
	}
}
