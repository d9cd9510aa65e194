package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/landlock"
)

// A service manager that waits for the container to be ready passes a socket in
// $NOTIFY_SOCKET (sd_notify(3)). The program gets another one, as with runc:
//
//	[ program ]                   [ nemoclaw start ]            [ service manager ]
//	READY=1, or anything -------> /run/notify/notify.sock
//	                              READY=1 --------------------> $NOTIFY_SOCKET
//	                              MAINPID=<init> ------------->
//	                              BARRIER=1 and a pipe -------> closed when it has read
//
// Nothing of what the program says is passed on but that it is ready.
const (
	notifyEnv    = "NOTIFY_SOCKET"
	notifyDir    = "notify" // in the state directory
	notifyName   = "notify.sock"
	notifyInside = "/run/notify"
)

// barrierTimeout is how long a service manager may take to read what it was
// told; one that does not know BARRIER=1 never closes the pipe (sd_notify_barrier(3)).
const barrierTimeout = 30 * time.Second

// offerNotify gives the program of spec a socket, if we were given one.
func offerNotify(spec *oci.Spec, stateDir string) bool {
	if os.Getenv(notifyEnv) == "" {
		return false
	}
	spec.Mounts = append(spec.Mounts, oci.Mount{Destination: notifyInside, Type: "bind", Source: filepath.Join(stateDir, notifyDir),
		Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"}})
	spec.Process.Env = append(spec.Process.Env, notifyEnv+"="+filepath.Join(notifyInside, notifyName))
	return true
}

// notifyRule lets a program send to the socket, which we made outside of its
// domain (Landlock ABI 9).
var notifyRule = landlock.Rule{Path: notifyInside, Access: landlock.ResolveUnix, Why: "sd_notify"}

// notify is the socket between a container and the service manager; nil if
// there is none.
type notify struct {
	fd   int
	host string
}

// listenNotify opens the socket that create offered in the directory dir.
func listenNotify(stateDir string) (*notify, error) {
	host := os.Getenv(notifyEnv)
	if host == "" {
		return nil, nil
	}
	dir, err := unix.Open(filepath.Join(stateDir, notifyDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // there was no service manager at create
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the notify socket: %w", err)
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make the notify socket: %w", err)
	}
	n := &notify{fd, host}
	// By descriptor: a socket's path has at most 107 bytes (unix(7)).
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, notifyName)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err == nil {
		err = os.Chmod(at, 0o777) // of any user of the container
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("cannot make the notify socket: %s", hideENOENT(err))
	}
	return n, nil
}

// Close closes the socket.
func (n *notify) Close() {
	if n != nil {
		unix.Close(n.fd)
	}
}

// forward waits until the program is ready, and says so to the service manager,
// or until the process pid has ended.
func (n *notify) forward(pid int) error {
	if n == nil {
		return nil
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot wait for the container: pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	for {
		ready, ended, err := n.await(pidfd)
		switch {
		case err != nil:
			return fmt.Errorf("cannot wait for the container: %w", err)
		case ready:
			return n.tell(pid)
		case ended:
			return nil
		}
	}
}

// await returns when something came or the process has ended. What came before
// the end counts.
func (n *notify) await(pidfd int) (ready, ended bool, err error) {
	fds := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, -1); err != nil {
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return false, false, err
	}
	if fds[0].Revents == 0 {
		return false, true, nil
	}
	buf := make([]byte, 4096)
	size, err := unix.Read(n.fd, buf)
	if err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			err = nil
		}
		return false, false, err
	}
	for line := range bytes.SplitSeq(buf[:size], []byte("\n")) {
		ready = ready || string(line) == "READY=1"
	}
	return ready, false, nil
}

// tell passes it on and waits until it was read: when we end, the service
// manager must know the process to watch in our place.
func (n *notify) tell(pid int) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	host := &unix.SockaddrUnix{Name: n.host} // "@..." is an abstract one
	for _, message := range []string{"READY=1\n", "MAINPID=" + strconv.Itoa(pid) + "\n"} {
		if err == nil {
			err = unix.Sendto(fd, []byte(message), 0, host)
		}
	}
	if err == nil {
		err = unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), host, 0)
	}
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot tell the service manager at %s: %w", n.host, err)
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierTimeout)); err != nil {
		return err
	}
	_, _ = r.Read(make([]byte, 1)) // its end, or none: then it does not know what this is
	return nil
}
