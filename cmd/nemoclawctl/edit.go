package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nemoclaw/specs/policy"
)

// lists are the lists below egress that a permanent decision adds to, and how.
var lists = map[string]struct {
	name string
	add  func(src []byte, host string, port uint16, comment string) ([]byte, error)
}{
	"approve": {"rules", policy.AddRule},
	"deny":    {"deny", policy.AddDeny},
}

// addRule adds a rule to a policy file, as the decision verb says, and leaves
// every other byte, its mode and its owner as they are. The file is replaced
// whole, and only if it is still the one that was read.
func addRule(file, verb, host string, port uint16, comment string) error {
	real, err := editable(file)
	if err != nil {
		return withSnippet(err, verb, host, port)
	}
	defer lockPolicy(real)()
	src, err := os.ReadFile(real)
	if err != nil {
		return fmt.Errorf("cannot change the policy: %w", err)
	}
	out, err := lists[verb].add(src, host, port, comment)
	if _, fault := policy.Parse(file, src); err != nil && fault != nil {
		return hinted{fmt.Errorf("cannot change the policy, which has faults:\n%w", fault), "mend the file, and decide again"}
	}
	if err != nil {
		return err
	}
	if err := replace(real, src, out); err != nil {
		return withSnippet(fmt.Errorf("cannot change the policy: %w", err), verb, host, port)
	}
	return nil
}

// lockPolicy has other operators' decisions about the file wait for ours, until
// unlock is called. Only who may write a file can lock it so (fcntl_locking(2));
// one that cannot be written is not changed either.
func lockPolicy(file string) (unlock func()) {
	for {
		f, err := os.OpenFile(file, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return func() {}
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		locked, lerr := f.Stat()
		now, nerr := os.Stat(file)
		if errors.Join(err, lerr, nerr) != nil || os.SameFile(locked, now) {
			return func() { f.Close() }
		}
		f.Close() // it was replaced while we waited
	}
}

// editable returns the file itself, behind symbolic links. Kubernetes' mounts
// are refused: what they hold is the cluster's to change.
func editable(file string) (string, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", fmt.Errorf("cannot change the policy: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(file), "..data")); err == nil && real != file {
		return "", clusters{fmt.Errorf("cannot change the policy: %s is part of a ConfigMap or Secret", file), filepath.Base(file)}
	}
	return real, nil
}

// clusters is why a file is not ours to change.
type clusters struct {
	error
	key string // of the ConfigMap: the file's name
}

// withSnippet tells what to write where we cannot.
func withSnippet(err error, verb, host string, port uint16) error {
	snippet := fmt.Sprintf("add below egress.%s, where the file comes from:\n  - host: %s\n    port: %d", lists[verb].name, host, port)
	if _, perr := netip.ParseAddr(host); perr == nil {
		snippet = strings.Replace(snippet, "host: ", "cidr: ", 1)
	}
	if c, ok := errors.AsType[clusters](err); ok {
		snippet += fmt.Sprintf("\nsuch as by: kubectl edit configmap NAME   # its key %s; it is in force here when the kubelet has brought it", c.key)
	}
	return hinted{err, snippet}
}

// replace puts out in the place of src, which the file must still hold.
func replace(file string, src, out []byte) error {
	before, err := os.Stat(file)
	if err != nil {
		return err
	}
	return swap(file, before, src, out)
}

// errOther is why a file is left alone.
var errOther = errors.New("somebody else has changed it meanwhile")

// swap replaces a file that is still the one of before, and holds src. The two
// change places at once (renameat2(2), RENAME_EXCHANGE), so that what was there
// can be looked at when nobody can write a third; where that is not possible it
// is looked at just before.
func swap(file string, before fs.FileInfo, src, out []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".policy-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = fill(tmp, out, before)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if !unchanged(file, before, src) {
		return errOther
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp.Name(), unix.AT_FDCWD, file, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // not on this file system
		err = os.Rename(tmp.Name(), file)
	case err == nil && !unchanged(tmp.Name(), before, src):
		return errors.Join(errOther, unix.Renameat2(unix.AT_FDCWD, tmp.Name(), unix.AT_FDCWD, file, unix.RENAME_EXCHANGE))
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// unchanged tells whether a file is still the one of before, and holds src.
func unchanged(file string, before fs.FileInfo, src []byte) bool {
	now, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	after, err := os.Stat(file)
	return err == nil && os.SameFile(before, after) && bytes.Equal(now, src)
}

// fill writes out to f, with the mode and the owner of before.
func fill(f *os.File, out []byte, before fs.FileInfo) error {
	if _, err := f.Write(out); err != nil {
		return err
	}
	if st, ok := before.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := f.Chmod(before.Mode().Perm()); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes a rename last. Some file systems cannot, and need not.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
