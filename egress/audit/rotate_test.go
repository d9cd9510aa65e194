package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// rotating is a log whose files hold a few lines each, begun and closed, and all
// of its files.
func rotating(t testing.TB, r Rotation, lines int) (file string, parts []string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "web.jsonl")
	l, err := Open(file)
	must(t, err)
	l.Rotate(r)
	must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
	for i := range lines {
		must(t, l.Append(NewChange("web", KindNote, fmt.Sprint("line ", i))))
	}
	must(t, l.Append(NewChange("web", KindEnd, "sandbox ended")))
	must(t, l.Close())
	parts, err = Parts(file)
	must(t, err)
	return file, parts
}

// whole verifies a log with its older files and returns the faults as one text.
func whole(t testing.TB, file string) (*Report, string) {
	t.Helper()
	rep, err := VerifyParts(file)
	must(t, err)
	var all []string
	for _, f := range rep.Faults {
		all = append(all, f.File+":"+f.String())
	}
	return rep, strings.Join(all, "\n")
}

// A log that goes on in other files is one chain, over any number of sandboxes,
// and each file alone is good as well.
func TestRotatedFilesAreOneChain(t *testing.T) {
	file, parts := rotating(t, Rotation{Size: 2000}, 40)
	if len(parts) < 5 {
		t.Fatalf("there are %d files", len(parts))
	}
	rep, got := whole(t, file)
	if got != "" || len(rep.Notes) > 0 || rep.Open || rep.Segments != 1 || rep.Head.Sequence != uint64(rep.Lines) || rep.Lines != 42+len(parts)-1 {
		t.Errorf("%+v", rep)
	}
	for _, name := range parts {
		rep, err := VerifyFile(name)
		must(t, err)
		if len(rep.Faults) > 0 {
			t.Errorf("%s: %v", name, rep.Faults)
		}
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, fi.Mode(), err)
		}
	}
	write(t, file, 3) // the next sandbox goes on where this one ended
	if rep, got := whole(t, file); got != "" || rep.Segments != 2 {
		t.Errorf("%+v", rep)
	}
}

// Law 7 holds over several files: whatever is done to one of them is found.
func TestRotatedFilesAreVerified(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(parts []string) error
		want string
	}{
		{"a file is gone", func(p []string) error { return os.Remove(p[1]) }, "are missing before it, with their file"},
		{"the last file is gone", func(p []string) error { return os.Remove(p[len(p)-1]) }, "no such file"},
		{"a file is another's copy", func(p []string) error { return copyOver(p[1], p[2]) }, "doubled, moved or inserted"},
		{"a file is another log's, with its head", func(p []string) error {
			_, others := rotating(t, Rotation{Size: 2000}, 40)
			return errors.Join(copyOver(others[1], p[1]), copyOver(HeadFile(others[1]), HeadFile(p[1])))
		}, "not the one that it continues"},
		{"two files change places", func(p []string) error {
			return unix.Renameat2(unix.AT_FDCWD, p[1], unix.AT_FDCWD, p[2], unix.RENAME_EXCHANGE)
		}, "moved or inserted"},
		{"a line in the middle is another", func(p []string) error { return change(p[1], "note", "nope") }, "not the one that was written there"},
		{"a file's last line is cut off", func(p []string) error { return cutLast(p[1]) }, "cut off"},
		{"a file's first line is cut off", func(p []string) error { return cutFirst(p[1]) }, "are missing before it"},
		{"the oldest file is not kept", func(p []string) error { return os.Remove(p[0]) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, parts := rotating(t, Rotation{Size: 2000}, 40)
			must(t, tc.do(parts))
			rep, err := VerifyParts(file)
			got := fmt.Sprint(err)
			if err == nil {
				_, got = whole(t, file)
			}
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("found %q, want %q", got, tc.want)
			}
			if tc.want == "" && (len(rep.Notes) != 1 || !strings.Contains(rep.Notes[0], "lie in an older file")) {
				t.Errorf("the notes are %q", rep.Notes)
			}
		})
	}
}

func copyOver(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

func change(file, old, now string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.Replace(string(b), old, now, 1)), 0o600)
}

func cutLast(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b[:strings.LastIndexByte(string(b[:len(b)-1]), '\n')+1], 0o600)
}

func cutFirst(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b[strings.IndexByte(string(b), '\n')+1:], 0o600)
}

// Only so many older files are kept, the youngest.
func TestKeep(t *testing.T) {
	file, parts := rotating(t, Rotation{Size: 2000, Keep: 2}, 60)
	if len(parts) != 3 || slices.Contains(parts, file+".1") {
		t.Errorf("there are %v", parts)
	}
	for _, name := range parts {
		if _, err := os.Stat(HeadFile(name)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(file + "*"); len(left) != 6 {
		t.Errorf("there are %v", left)
	}
	if _, got := whole(t, file); got != "" {
		t.Error(got)
	}
}

// A file is old by the age of its first line, also for the next writer.
func TestRotatedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "web.jsonl")
		files := func() int {
			parts, err := Parts(file)
			must(t, err)
			return len(parts)
		}
		for day := 1; day <= 3; day++ {
			l, err := Open(file)
			must(t, err)
			l.Rotate(Rotation{Age: 24 * time.Hour})
			must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
			<-time.After(23 * time.Hour)
			must(t, l.Append(NewChange("web", KindNote, "the same day")))
			if n := files(); n != day {
				t.Errorf("on day %d there are %d files", day, n)
			}
			must(t, l.Close())
			<-time.After(time.Hour)
		}
	})
}

// Wherever a rotation is interrupted, the next writer goes on with one chain.
func TestInterruptedRotation(t *testing.T) {
	for _, tc := range []struct {
		name string
		at   func(t *testing.T, file string, head []byte)
	}{
		{"the new file was not there", func(t *testing.T, file string, head []byte) {
			must(t, os.WriteFile(HeadFile(file+".9"), head, 0o600))
		}},
		{"the new file had not its name", func(t *testing.T, file string, head []byte) {
			must(t, os.WriteFile(HeadFile(file+".9"), head, 0o600))
			must(t, os.WriteFile(file+".9", nil, 0o600))
		}},
		{"the head named the older file's end", func(t *testing.T, file string, head []byte) {
			must(t, os.WriteFile(HeadFile(file+".9"), head, 0o600))
			must(t, os.Rename(file, file+".9"))
			must(t, os.WriteFile(file, nil, 0o600))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, _ := rotating(t, Rotation{Size: 2000}, 20)
			head, err := os.ReadFile(HeadFile(file))
			must(t, err)
			tc.at(t, file, head)
			write(t, file, 2)
			l, err := Open(file)
			must(t, err)
			if len(l.Recovered()) > 0 {
				t.Errorf("recovered %q", l.Recovered())
			}
			must(t, l.Close())
			if rep, got := whole(t, file); got != "" || rep.Segments != 2 {
				t.Errorf("%+v", rep)
			}
		})
	}
}

// A log that cannot be rotated goes on, says so once, and refuses nothing.
func TestRotationFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	must(t, os.MkdirAll(HeadFile(file+".1"), 0o700)) // a directory stands in the way
	l, err := Open(file)
	must(t, err)
	defer l.Close()
	l.Rotate(Rotation{Size: 500})
	for range 20 {
		must(t, l.Append(NewChange("web", KindNote, "line")))
	}
	b, err := os.ReadFile(file)
	must(t, err)
	if n := strings.Count(string(b), "cannot begin another"); n != 1 || l.Fault() != nil {
		t.Errorf("it is said %d times; the fault is %v", n, l.Fault())
	}
	if parts, err := Parts(file); err != nil || len(parts) != 1 {
		t.Errorf("there are %v, %v", parts, err)
	}
}

// A follower reads on across files, from where it asked, without a gap.
func TestFollowAcrossFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	write(t, file, 3)
	l, err := Open(file)
	must(t, err)
	l.Rotate(Rotation{Size: 2000})
	first := l.End().Sequence
	seen := make(chan uint64, 1000)
	ended := make(chan error, 1)
	go func() {
		defer close(seen)
		ended <- l.Follow(context.Background(), first+1, func(line []byte) error {
			k, _ := parseLink(line[:len(line)-1])
			seen <- k.seq
			return nil
		})
	}()
	for i := range 60 {
		must(t, l.Append(NewChange("web", KindNote, fmt.Sprint("line ", i))))
		if i == 5 {
			<-seen // it has begun
		}
	}
	last := l.End().Sequence
	must(t, l.Close())
	must(t, <-ended)
	want := first + 3
	for seq := range seen {
		if seq != want {
			t.Fatalf("line %d came, want %d", seq, want)
		}
		want++
	}
	if want != last+1 {
		t.Errorf("the last that came was %d, want %d", want-1, last)
	}
}

// A log that goes on for years remembers no more files than it keeps, and who
// asks for all of it gets what there is.
func TestForgottenFiles(t *testing.T) {
	l, err := Open(filepath.Join(t.TempDir(), "web.jsonl"))
	must(t, err)
	l.Rotate(Rotation{Size: 1000, Keep: 3})
	for i := range 100 {
		must(t, l.Append(NewChange("web", KindNote, fmt.Sprint("line ", i))))
	}
	if n := len(l.older); n > 3 || l.forgotten == 0 {
		t.Errorf("%d files are remembered, and %d forgotten", n, l.forgotten)
	}
	last := l.End().Sequence
	must(t, l.Close())
	var seen []uint64
	must(t, l.Follow(context.Background(), 0, func(line []byte) error {
		k, _ := parseLink(line[:len(line)-1])
		seen = append(seen, k.seq)
		return nil
	}))
	for i, seq := range seen {
		if want := last - uint64(len(seen)-1-i); seq != want {
			t.Fatalf("line %d came, want %d", seq, want)
		}
	}
	if len(seen) < 4 {
		t.Errorf("%d lines came", len(seen))
	}
}
