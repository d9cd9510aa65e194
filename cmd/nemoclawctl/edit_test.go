package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const edited = "# keep me\negress:\n  rules:\n    - host: api.example.org\n      port: 443\n"

// A permanent approval replaces the file with one that is as it was but for the
// rule: its mode, its owner, and where links lead to it.
func TestEditKeepsTheFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root is needed to give files away")
	}
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.yaml"), filepath.Join(dir, "policy.yaml")
	must(t, os.WriteFile(real, []byte(edited), 0o640))
	must(t, os.Chmod(real, 0o640))
	must(t, os.Chown(real, 1234, 5678))
	must(t, os.Symlink("real.yaml", link))
	must(t, addRule(link, "approve", "git.example.org", 22, "by a test"))
	if to, err := os.Readlink(link); err != nil || to != "real.yaml" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	st, err := os.Stat(real)
	must(t, err)
	if sys := st.Sys().(*syscall.Stat_t); st.Mode() != 0o640 || sys.Uid != 1234 || sys.Gid != 5678 {
		t.Errorf("it is now %v of %d:%d", st.Mode(), sys.Uid, sys.Gid)
	}
	got, err := os.ReadFile(real)
	must(t, err)
	if want := edited + "    - host: git.example.org\n      port: 22  # by a test\n"; string(got) != want {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("there are %d files", len(left))
	}
}

// Operators who decide at the same time wait for each other: no decision is lost,
// and none is refused.
func TestEditTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must(t, os.WriteFile(file, []byte(edited), 0o644))
	var together sync.WaitGroup
	for i := range 16 {
		together.Go(func() {
			if err := addRule(file, "approve", fmt.Sprintf("h%d.example.org", i), 443, ""); err != nil {
				t.Error(err)
			}
		})
	}
	together.Wait()
	got, err := os.ReadFile(file)
	must(t, err)
	for i := range 16 {
		if !strings.Contains(string(got), fmt.Sprintf("h%d.example.org", i)) {
			t.Errorf("h%d.example.org is lost", i)
		}
	}
}

// Who edits the file at the same time loses nothing: it is not replaced.
func TestEditSeesOthers(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(file string) error
	}{
		{"in place", func(file string) error { return os.WriteFile(file, []byte(edited+"# mine\n"), 0o644) }},
		{"by a rename", func(file string) error {
			return errors.Join(os.WriteFile(file+".new", []byte(edited), 0o644), os.Rename(file+".new", file))
		}},
		{"by removing it", os.Remove},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "policy.yaml")
			must(t, os.WriteFile(file, []byte(edited), 0o644))
			before, err := os.Stat(file)
			must(t, err)
			must(t, c.change(file))
			changed, _ := os.ReadFile(file)
			if err := swap(file, before, []byte(edited), []byte("egress: {rules: []}\n")); err == nil {
				t.Error("it was replaced")
			}
			if now, _ := os.ReadFile(file); string(now) != string(changed) {
				t.Errorf("what the other wrote is now %q", now)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) > 1 {
				t.Errorf("there are %d files", len(left))
			}
		})
	}
}

// A file that cannot be written is answered with what to write where it can.
func TestEditReadOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root is needed to mount")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.yaml")
	must(t, os.WriteFile(file, []byte(edited), 0o644))
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for verb, list := range map[string]string{"approve": "egress.rules", "deny": "egress.deny"} {
		err := addRule(file, verb, "2001:db8::1", 22, "")
		h, ok := errors.AsType[hinted](err)
		if !ok || !strings.Contains(err.Error(), "read-only") || !strings.HasPrefix(h.hint, "add below "+list) || !strings.HasSuffix(h.hint, "  - cidr: 2001:db8::1\n    port: 22") {
			t.Errorf("answered %v, %+v", err, h)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
