package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whatever somebody else does to the log while it is open, it is found at the
// next line, or when it is looked after; said there and to whoever asks; and the
// log goes on where it is looked for, as one chain: what is missing is named by
// Verify, and nothing but that. Whoever follows gets every line, once.
func TestOutsiders(t *testing.T) {
	move := func(to string) func(file string) error {
		return func(file string) error { return os.Rename(file, filepath.Join(filepath.Dir(file), to)) }
	}
	for _, tc := range []struct {
		name   string
		change func(file string) error
		found  string
		faults []string // of Verify, over all files
		note   string
	}{
		{"removed", os.Remove, "removed the log: the lines up to number 3 are lost", []string{"line 1: line numbers 1 to 3 are missing before it"}, ""},
		{"moved away", move("elsewhere"), "moved the log to ", nil, "the lines up to number 3 lie in an older file"},
		{"moved to an older file's name", move("web.jsonl.1"), "moved the log to ", []string{"the head file is missing"}, ""},
		{"moved away, and a new one made (logrotate create)", func(file string) error {
			return errors.Join(move("elsewhere")(file), os.WriteFile(file, nil, 0o600))
		}, "moved the log to ", nil, "the lines up to number 3 lie in an older file"},
		{"replaced by text", func(file string) error {
			return errors.Join(os.WriteFile(file+".new", []byte("hello\n"), 0o600), os.Rename(file+".new", file))
		}, "removed the log", []string{"line 1: not a line of this log", "line numbers 1 to 3 are missing"}, ""},
		{"emptied (logrotate copytruncate)", func(file string) error { return os.Truncate(file, 0) }, "cut the log off after 0 of", []string{"line 1: line numbers 1 to 3 are missing before it"}, ""},
		{"cut off in a line", func(file string) error { return os.Truncate(file, 700) }, "cut the log off after 700 of", []string{"line numbers 2 to 3 are missing before it"}, "unfinished, and sealed"},
		{"written to", func(file string) error {
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("nothing happened\n")
			return errors.Join(err, f.Close())
		}, "wrote 17 bytes to the log behind line 3", []string{"line 4: not a line of this log"}, ""},
		{"without its head", func(file string) error { return os.Remove(HeadFile(file)) }, "took the log's head away", nil, "took the log's head away"},
	} {
		for _, looked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, looked after %v", tc.name, looked), func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "web.jsonl")
				l, err := Open(file)
				must(t, err)
				defer l.Close()
				var got []string
				reached, done := make(chan struct{}), make(chan error, 1)
				go func() {
					done <- l.Follow(t.Context(), 0, func(line []byte) error {
						k, _ := parseLink(line)
						got = append(got, fmt.Sprint(k.seq))
						if k.seq == 3 {
							close(reached)
						}
						return nil
					})
				}()
				must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
				must(t, l.Append(NewNetwork("web", ActivityOpen)))
				must(t, l.Append(NewNetwork("web", ActivityOpen)))
				select {
				case <-reached:
				case <-time.After(10 * time.Second):
					t.Fatal("who follows hears nothing")
				}
				must(t, l.Check())
				if n, found := l.Disturbed(); n != 0 {
					t.Fatalf("nobody has touched it, and %q was found", found)
				}
				must(t, tc.change(file))
				if looked {
					must(t, l.Check())
				} else {
					must(t, l.Append(NewNetwork("web", ActivityOpen)))
				}
				n, found := l.Disturbed()
				if n != 1 || !strings.Contains(found[0], tc.found) {
					t.Errorf("found %d: %q, want %q", n, found, tc.found)
				}
				must(t, l.Append(NewNetwork("web", ActivityClose)))
				must(t, l.Check())
				must(t, l.Append(NewChange("web", KindEnd, "sandbox ended")))
				last := l.End().Sequence
				must(t, l.Close())
				if err := <-done; err != nil {
					t.Error(err)
				}
				for i := range last {
					if int(i) >= len(got) || got[i] != fmt.Sprint(i+1) {
						t.Errorf("who followed got lines %v, want 1 to %d", got, last)
						break
					}
				}
				text, err := os.ReadFile(file)
				must(t, err)
				if !strings.Contains(string(text), tc.found) || strings.Count(string(text), `"kind":"recovered"`) > 2 {
					t.Errorf("the log does not tell, once, that somebody else %s:\n%s", tc.found, text)
				}
				rep, err := VerifyParts(file)
				must(t, err)
				for i, f := range rep.Faults {
					if i >= len(tc.faults) || !strings.Contains(f.String(), tc.faults[i]) {
						t.Errorf("fault %d: %s, want %q", i+1, f, tc.faults)
					}
				}
				if len(rep.Faults) < len(tc.faults) {
					t.Errorf("faults: %v, want %q", rep.Faults, tc.faults)
				}
				if !slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.Contains(n, tc.note) }) {
					t.Errorf("notes: %q, want %q", rep.Notes, tc.note)
				}
				if again, err := Open(file); err != nil || len(again.Recovered()) > 0 {
					t.Errorf("opened again it has %v to recover: %v", again.Recovered(), err)
				} else {
					again.Close()
				}
			})
		}
	}
}

// Where the log cannot go on nothing is written, and whoever asks is refused
// until it can.
func TestNoPlaceForTheLog(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "web.jsonl")
	l, err := Open(file)
	must(t, err)
	defer l.Close()
	must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
	for _, change := range []func() error{
		func() error { return errors.Join(os.Symlink("/dev/null", file+".new"), os.Rename(file+".new", file)) },
		func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		must(t, change())
		for range 2 {
			if err := l.Append(NewNetwork("web", ActivityOpen)); err == nil || l.Fault() == nil {
				t.Errorf("a line: %v; the log's fault: %v", err, l.Fault())
			}
		}
		if l.Check() == nil {
			t.Error("it is said to be well")
		}
	}
	must(t, os.Remove(file))
	must(t, l.Append(NewNetwork("web", ActivityOpen)))
	if l.Fault() != nil {
		t.Errorf("the log's fault: %v", l.Fault())
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "somebody else removed the log") {
		t.Errorf("the log does not say that it was removed: %s, %v", text, err)
	}
}
