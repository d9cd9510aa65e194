package runtime

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
)

// lookPath resolves a process's args[0] as runc's init does, with the rights of
// the container's user, and in runc's words: engines tell "not found" from "may
// not" by them. With the launcher in args[0] init itself would find the
// launcher, and the error would come only at start.
func (root *containerRoot) lookPath(p *oci.Process) (string, error) {
	var program string
	err := hooks.OnThread(func() (err error) { // which ends with its borrowed credentials
		if err := root.become(p); err != nil {
			return fmt.Errorf("cannot look for the program as the container's user: %w", err)
		}
		program, err = root.search(p)
		return err
	})
	return program, err
}

// become gives the calling thread the file system credentials of the
// container's user. The raw calls change this thread alone; package syscall's
// change all.
func (root *containerRoot) become(p *oci.Process) error {
	groups := append(slices.Clone(p.User.AdditionalGids), 0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)-1), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return e
	}
	var caps uint32
	if c := p.Capabilities; c != nil && p.User.UID == 0 && root.uid == 0 {
		for name, bit := range map[string]int{"CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH} {
			if slices.Contains(c.Effective, name) {
				caps |= 1 << bit
			}
		}
	}
	return borrow(root.uid, root.gid, caps)
}

// borrow gives the calling thread the ids for files, and of the capabilities
// those alone whose bits are set in caps.
func borrow(uid, gid int, caps uint32) error {
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: caps, Permitted: caps}}
	return unix.Capset(&head, &data[0])
}

func (root *containerRoot) search(p *oci.Process) (string, error) {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		err := root.executable(name, p.Cwd)
		if errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("exec: %q: stat %s: %w", name, name, err)
		}
		if err != nil {
			return "", fmt.Errorf("exec: %q: %w", name, err)
		}
		return name, nil
	}
	for _, dir := range filepath.SplitList(searchPath(p.Env)) {
		if dir == "" {
			dir = "."
		}
		found := filepath.Join(dir, name)
		if root.executable(found, p.Cwd) != nil {
			continue
		}
		if !path.IsAbs(found) {
			return "", fmt.Errorf("exec: %q: cannot run executable found relative to current directory", name)
		}
		return found, nil
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// defaultPath is what libcontainer gives a process without PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func searchPath(env []string) string {
	dirs := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v // the last one counts
		}
	}
	return dirs
}

func (root *containerRoot) executable(name, cwd string) error {
	if !path.IsAbs(name) {
		name = path.Join(cwd, name)
	}
	fd, err := root.open(name, unix.O_PATH, following)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	return unix.Faccessat2(fd, "", unix.X_OK, unix.AT_EMPTY_PATH|unix.AT_EACCESS)
}
