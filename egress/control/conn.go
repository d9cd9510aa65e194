package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the size of the largest message, in bytes. A policy file
	// is at most 1 MiB (specs/policy) and JSON escapes may double it.
	MaxMessage = 4 << 20
	// MaxFiles is how many descriptors one message carries at the most.
	MaxFiles = 16
	// sendWait is how long Send waits for room. Whoever leaves more than
	// MaxMessage bytes unread for so long is stuck, and must not hold others up.
	sendWait = time.Second
)

// Conn is one end of a conversation: whole messages, in order, with
// descriptors beside them. Send may be called from several goroutines, Recv
// from one.
type Conn struct {
	c   *net.UnixConn
	mu  sync.Mutex // guards writes: a packet and its descriptors stay together
	buf []byte
}

// Pair returns the two ends of a new conversation: ours, and the file that a
// child process inherits.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	ours, err := FromFile(os.NewFile(uintptr(fds[0]), "control"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// FromFile makes a Conn of an inherited socket and closes f.
func FromFile(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot use descriptor %d as a socket: %w", f.Fd(), err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("cannot use an inherited descriptor: it is not a unix socket")
	}
	return newConn(u)
}

// newConn makes room in the kernel for the largest message: a packet that does
// not fit into the send buffer is refused whole (unix(7), EMSGSIZE).
func newConn(u *net.UnixConn) (*Conn, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		// SO_SNDBUFFORCE needs CAP_NET_ADMIN; without it the limit is wmem_max.
		if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, MaxMessage+4096); serr != nil {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, MaxMessage+4096)
		}
	}); err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, fmt.Errorf("cannot size a socket's buffer: %w", serr)
	}
	return &Conn{c: u}, nil
}

// Send sends one message and the descriptors of files, which stay open here. A
// message is sent whole or not at all. To a peer that does not read it is an
// error after a second, os.ErrDeadlineExceeded.
func (c *Conn) Send(msg any, files ...*os.File) error {
	b, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("cannot encode %T: %w", msg, err)
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("cannot send %T: %d bytes are more than %d", msg, len(b), MaxMessage)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.c.SetWriteDeadline(time.Now().Add(sendWait)); err != nil {
		return fmt.Errorf("cannot send %T: %w", msg, err)
	}
	if _, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("cannot send %T: %w", msg, err)
	}
	return nil
}

// Recv receives one message into msg and returns the descriptors that came
// with it. At the other side's end of the conversation it returns io.EOF. On
// any error no descriptor is left open.
func (c *Conn) Recv(msg any) ([]*os.File, error) {
	n, err := c.peek()
	if err != nil {
		return nil, err
	}
	if n > cap(c.buf) {
		c.buf = make([]byte, n)
	}
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf[:cap(c.buf)], oob)
	if err != nil {
		return nil, fmt.Errorf("cannot receive %T: %w", msg, err)
	}
	files, err := filesOf(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("cannot receive %T: it was cut off", msg)
	}
	if err == nil && n == 0 && len(files) == 0 {
		err = io.EOF
	}
	if err == nil {
		if jerr := json.Unmarshal(c.buf[:n], msg); jerr != nil {
			err = fmt.Errorf("cannot understand %T: %w", msg, jerr)
		}
	}
	if cap(c.buf) > 64<<10 {
		c.buf = nil // one large policy is no reason to keep its room for ever
	}
	if err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

// peek returns the length of the next packet, and leaves it where it is.
func (c *Conn) peek() (int, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, rerr = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return 0, fmt.Errorf("cannot receive: %w", err)
	}
	if n > MaxMessage {
		return 0, fmt.Errorf("cannot receive a message of %d bytes: %d is the limit", n, MaxMessage)
	}
	return max(n, 4096), nil
}

// Close ends the conversation.
func (c *Conn) Close() error { return c.c.Close() }

// CloseAll closes files; a nil among them is skipped.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func filesOf(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("cannot read received descriptors: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			CloseAll(files)
			return nil, fmt.Errorf("cannot read received descriptors: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// Listen opens the socket name in the state directory dir, mode 0600. network
// is "unix" for HTTP or "unixpacket" for messages. The path may be longer than
// a socket address holds (108 bytes, unix(7)): it is reached through a
// descriptor of the directory.
func Listen(network, dir, name string) (*net.UnixListener, error) {
	var l *net.UnixListener
	err := inDir(dir, func(short string) (err error) {
		addr := &net.UnixAddr{Net: network, Name: filepath.Join(short, name)}
		if l, err = net.ListenUnix(network, addr); err != nil {
			return err
		}
		l.SetUnlinkOnClose(false) // the short name is gone by then
		return os.Chmod(addr.Name, 0o600)
	})
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, fmt.Errorf("cannot listen on %s: %w", filepath.Join(dir, name), err)
	}
	return l, nil
}

// Dial connects to the socket name in the state directory dir.
func Dial(network, dir, name string) (*net.UnixConn, error) {
	var c *net.UnixConn
	err := inDir(dir, func(short string) (err error) {
		c, err = net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: filepath.Join(short, name)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot reach the gateway at %s: %w", filepath.Join(dir, name), err)
	}
	return c, nil
}

// DialRuntime connects to a monitor's runtime socket.
func DialRuntime(dir string) (*Conn, error) {
	u, err := Dial("unixpacket", dir, RuntimeSocket)
	if err != nil {
		return nil, err
	}
	return newConn(u)
}

// AcceptRuntime accepts one conversation on a "unixpacket" listener.
func AcceptRuntime(l *net.UnixListener) (*Conn, error) {
	u, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return newConn(u)
}

func inDir(dir string, f func(short string) error) error {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	return f(fmt.Sprintf("/proc/self/fd/%d", d))
}
