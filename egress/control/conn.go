package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the size of the largest message, in bytes. A policy file
	// is at most 1 MiB (specs/policy) and JSON escapes may double it.
	MaxMessage = 4 << 20
	// MaxFiles is how many descriptors one message carries at the most.
	MaxFiles = 16
	// packetSize is the size of a packet that a reader expects unannounced, in
	// bytes.
	packetSize = 16 << 10
	// sendWait is how long Send waits for room. Whoever leaves more than
	// MaxMessage bytes unread for so long is stuck, and must not hold others up.
	sendWait = time.Second
)

// Conn is one end of a conversation: whole messages, in order, with
// descriptors beside them. Send may be called from several goroutines, Recv
// from one.
type Conn struct {
	c   *net.UnixConn
	raw syscall.RawConn
	in  []byte // the packet read last
	oob [16 + 4*MaxFiles]byte

	mu  sync.Mutex // guards writes: large packets stay behind what announces them
	out []byte
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
	return &Conn{c: u, raw: raw}, nil
}

// Send sends one message and the descriptors of files, which stay open here. A
// message is sent whole or not at all. To a peer that does not read it is an
// error after a second, os.ErrDeadlineExceeded.
func (c *Conn) Send(msg any, files ...*os.File) error {
	var text []byte
	if !frequent(msg) {
		var err error
		if text, err = json.Marshal(msg); err != nil {
			return fmt.Errorf("cannot encode %T: %w", msg, err)
		}
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
	if text == nil {
		c.out = appendFrequent(c.out[:0], msg)
		text = c.out
		defer c.tidy()
	}
	if len(text) > MaxMessage {
		return fmt.Errorf("cannot send %T: %d bytes are more than %d", msg, len(text), MaxMessage)
	}
	if err := c.write(text, oob); err != nil {
		return fmt.Errorf("cannot send %T: %w", msg, err)
	}
	return nil
}

// frequent tells whether msg is one of those that are not JSON.
func frequent(msg any) bool {
	switch m := msg.(type) {
	case ToWorker:
		return m.Written != nil
	case ToMonitorFromWorker:
		return m.Records != nil
	}
	return false
}

func appendFrequent(b []byte, msg any) []byte {
	switch m := msg.(type) {
	case ToWorker:
		return m.Written.appendTo(b)
	case ToMonitorFromWorker:
		return m.Records.appendTo(b)
	}
	return b
}

// write sends a packet, and announces it if it is a large one. Without the
// packet that it announces a conversation makes no sense: it ends.
func (c *Conn) write(b, oob []byte) error {
	if len(b) <= packetSize {
		return c.writePacket(b, oob)
	}
	if err := c.writePacket(binary.BigEndian.AppendUint32([]byte{markLarge}, uint32(len(b))), nil); err != nil {
		return err
	}
	err := c.writePacket(b, oob)
	if err != nil {
		c.c.Close()
	}
	return err
}

// writePacket waits only where there is no room, which is rare: a deadline for
// each packet would cost more than to send it.
func (c *Conn) writePacket(b, oob []byte) error {
	var serr error
	if err := c.raw.Control(func(fd uintptr) {
		_, serr = unix.SendmsgN(int(fd), b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}); err != nil {
		return err
	}
	if serr != unix.EAGAIN && serr != unix.EINTR {
		return serr
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(sendWait)); err != nil {
		return err
	}
	_, _, err := c.c.WriteMsgUnix(b, oob, nil)
	return err
}

// tidy lets go of the room that a rare large message took.
func (c *Conn) tidy() {
	if cap(c.out) > packetSize {
		c.out = nil
	}
}

// Recv receives one message into msg and returns the descriptors that came
// with it. At the other side's end of the conversation it returns io.EOF. On
// any error no descriptor is left open.
func (c *Conn) Recv(msg any) ([]*os.File, error) {
	if c.in == nil {
		c.in = make([]byte, packetSize)
	}
	b, files, err := c.read(c.in)
	if err == nil && len(b) == 5 && b[0] == markLarge && len(files) == 0 {
		size := binary.BigEndian.Uint32(b[1:])
		if size > MaxMessage {
			return nil, fmt.Errorf("cannot receive a message of %d bytes: %d is the limit", size, MaxMessage)
		}
		b, files, err = c.read(make([]byte, size)) // not kept: one large policy is no reason to
	}
	if err == nil {
		err = understand(b, msg)
	}
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		CloseAll(files)
		return nil, fmt.Errorf("cannot receive %T: %w", msg, err)
	}
	return files, nil
}

// understand parses a packet.
func understand(b []byte, msg any) error {
	switch m := msg.(type) {
	case *ToWorker:
		if b[0] == markWritten {
			m.Written = new(Written)
			return m.Written.parse(b)
		}
	case *ToMonitorFromWorker:
		if b[0] == markRecords {
			m.Records = new(Records)
			return m.Records.parse(b)
		}
	}
	return json.Unmarshal(b, msg)
}

// read reads one packet into room and returns it, with the descriptors that came
// with it. It is io.EOF that ends the conversation.
func (c *Conn) read(room []byte) (b []byte, files []*os.File, err error) {
	var n, oobn, flags int
	var rerr error
	if err := c.raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), room, c.oob[:], unix.MSG_CMSG_CLOEXEC)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	}); err != nil {
		return nil, nil, err
	}
	if rerr != nil {
		return nil, nil, rerr
	}
	if files, err = filesOf(c.oob[:oobn]); err != nil {
		return nil, nil, err
	}
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errShort
	case n == 0:
		err = io.EOF
	}
	if err != nil {
		CloseAll(files)
		return nil, nil, err
	}
	return room[:n], files, nil
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
