package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
	"nemoclaw/specs"
)

// inNamespace runs f in a mount namespace of its own, whose mounts nobody else
// sees, with a root made of entries.
func inNamespace(t *testing.T, entries []string, f func(c *carver, dir string) error) error {
	t.Helper()
	root := image(t, entries...)
	dir, err := os.Readlink("/proc/self/fd/" + itoa(root.fd))
	check(t, err)
	return hooks.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // of this namespace
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(&carver{root: &containerRoot{fd: fd}, made: map[string]uint64{}}, dir)
	})
}

// Whoever writes a shared volume may move a directory while its mounts are made:
// then it is not where the policy says, and no container is made.
func TestCarveIsVerified(t *testing.T) {
	for _, test := range []struct {
		name string
		move func(dir string) error // by another namespace, where it is no mount point
		says string
	}{
		{"nothing is moved", func(string) error { return nil }, ""},
		{"moved away", func(dir string) error { return os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")) }, "it was moved meanwhile"},
		{"replaced", func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")), os.MkdirAll(filepath.Join(dir, "a/keep"), 0o755))
		}, "it was moved meanwhile"},
		{"removed", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "a")) }, "it was moved meanwhile"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := inNamespace(t, []string{"a/keep/"}, func(c *carver, dir string) error {
				for _, carve := range []specs.Carve{{Path: "/a", Within: "/"}, {Path: "/a/keep", Listed: true, ReadOnly: true, Within: "/"}} {
					if err := c.one(carve); err != nil {
						return err
					}
				}
				moved := make(chan error)
				go func() { moved <- test.move(dir) }() // on a thread outside
				if err := <-moved; err != nil {
					t.Errorf("cannot move it: %v", err)
				}
				return c.verify()
			})
			if errors.Is(err, unix.EPERM) {
				t.Skip("this machine makes no mount namespaces: ", err)
			}
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
		})
	}
}
