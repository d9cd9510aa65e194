package hooks

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// NewNetns makes an empty network namespace that lives as long as the file, or
// something else that refers to it. It needs CAP_SYS_ADMIN.
func NewNetns() (*os.File, error) {
	return newNetns(func() error { return nil })
}

// newNetns makes one and runs f in it, on a thread that ends with f.
func newNetns(f func() error) (*os.File, error) {
	var ns *os.File
	err := OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot make a network namespace: %w", err)
		}
		if err := f(); err != nil {
			return err
		}
		ns, err = OpenNetns("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// OpenNetns opens the network namespace at path, which may be a link of
// /proc/PID/ns or a file on which a namespace is mounted. Whatever else path
// names is an error.
func OpenNetns(path string) (*os.File, error) {
	// O_NONBLOCK: a fifo must not keep us waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a network namespace: %w", err)
	}
	if err := isNetns(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	return f, nil
}

// isNetns asks the file system first: an ioctl on a stranger's device might do
// anything (ioctl_nsfs(2), NS_GET_NSTYPE since Linux 4.11).
func isNetns(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("cannot tell its file system: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return errors.New("it is not a namespace")
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("cannot tell the kind of namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return errors.New("it is a namespace of another kind")
	}
	return nil
}

// SameNetns says whether a and b are the same namespace.
func SameNetns(a, b *os.File) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, fmt.Errorf("cannot identify a network namespace: %w", err)
	}
	y, err := b.Stat()
	if err != nil {
		return false, fmt.Errorf("cannot identify a network namespace: %w", err)
	}
	return os.SameFile(x, y), nil
}

// In runs f inside ns and returns its error. f runs on a thread of its own,
// which ends with f, so that no other goroutine ever meets the namespace; a
// goroutine that f starts is not in ns.
func In(ns *os.File, f func() error) error {
	return OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter a network namespace: %w", err)
		}
		return f()
	})
}

// lockNetns keeps others, of whatever process, from moving links in or out of
// ns until unlock is called.
func lockNetns(ns *os.File) (unlock func(), err error) {
	// A description of its own: flock(2) locks are those of open files.
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot lock a network namespace: %w", err)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock a network namespace: flock: %w", err)
	}
	return func() { f.Close() }, nil
}

// OnThread runs f on a thread that is thrown away. The process's first thread
// is passed over: the Go runtime never ends it, and /proc/self/ns/net would
// show f's namespace ever after.
func OnThread(f func() error) error {
	done := make(chan error)
	go func() {
		err := errors.New("cannot go on: the function left its thread")
		defer func() { done <- err }()
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err = OnThread(f)
			goruntime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}

// notOurs refuses a namespace that must never be changed: the caller's own and
// that of the machine's first process, unless the kernel keeps the latter from
// us (ptrace(2), PTRACE_MODE_READ: init may hold capabilities that we lack).
func notOurs(ns *os.File) error {
	st, err := ns.Stat()
	if err != nil {
		return fmt.Errorf("cannot identify a network namespace: %w", err)
	}
	for _, path := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		host, err := os.Stat(path)
		if errors.Is(err, os.ErrPermission) && path == "/proc/1/ns/net" {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot tell the host's network namespace: %w", err)
		}
		if os.SameFile(host, st) {
			return errors.New("it is the host's own network namespace")
		}
	}
	return nil
}
