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

// addRule adds a rule to a policy file and leaves every other byte, its mode
// and its owner as they are. The file is replaced whole, and only if it is
// still the one that was read.
func addRule(file, host string, port uint16, comment string) error {
	real, err := editable(file)
	if err != nil {
		return withSnippet(err, host, port)
	}
	src, err := os.ReadFile(real)
	if err != nil {
		return fmt.Errorf("cannot change the policy: %w", err)
	}
	out, err := policy.AddRule(src, host, port, comment)
	if err != nil {
		return err
	}
	if err := replace(real, src, out); err != nil {
		return withSnippet(fmt.Errorf("cannot change the policy: %w", err), host, port)
	}
	return nil
}

// editable returns the file itself, behind symbolic links. Kubernetes' mounts
// are refused: what they hold is the cluster's to change.
func editable(file string) (string, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", fmt.Errorf("cannot change the policy: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(file), "..data")); err == nil && real != file {
		return "", fmt.Errorf("cannot change the policy: %s is part of a ConfigMap or Secret", file)
	}
	return real, nil
}

// withSnippet tells what to write where we cannot.
func withSnippet(err error, host string, port uint16) error {
	snippet := fmt.Sprintf("add below egress.rules, where the file comes from:\n  - host: %s\n    port: %d", host, port)
	if _, perr := netip.ParseAddr(host); perr == nil {
		snippet = strings.Replace(snippet, "host: ", "cidr: ", 1)
	}
	return hinted{err, snippet}
}

// replace puts out in the place of src, which the file must still hold.
func replace(file string, src, out []byte) error {
	before, err := os.Stat(file)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".policy-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is none
	err = fill(tmp, out, before)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	now, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) || !bytes.Equal(now, src) {
		return errors.New("somebody else has changed it meanwhile")
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
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
