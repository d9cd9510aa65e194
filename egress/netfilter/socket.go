package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/kaudit"
)

const (
	// room is what the kernel keeps of unread messages, in bytes of its own
	// memory: some thousand of them.
	room = 1 << 20
	// bufferSize is enough for a message, and for a part of a list: the kernel
	// makes it no longer than what is offered to be read, nor than this.
	bufferSize = 16 << 10
	// headerSize is that of struct nlmsghdr (netlink(7)).
	headerSize = unix.NLMSG_HDRLEN
)

// errClosed ends whoever reads: the socket was closed.
var errClosed = os.ErrClosed

// A socket speaks to netfilter in the namespace that it was opened in.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
	seq  uint32
}

// open opens a socket in the thread's namespace, with room bytes for what is not
// read yet, and joins groups (the numbers of enum nfnetlink_groups). It takes
// CAP_NET_ADMIN there.
func open(room int, groups ...int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	s := &socket{file: os.NewFile(uintptr(fd), "netfilter"), buf: make([]byte, bufferSize)}
	// Above net.core.rmem_max with CAP_NET_ADMIN.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// insist has the kernel keep a flow that is over until it could tell of it
// (netlink(7), NETLINK_BROADCAST_ERROR).
func (s *socket) insist() (err error) {
	if cerr := s.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

// Close ends a read that waits, too.
func (s *socket) Close() { s.file.Close() }

// receive waits for messages and passes each on; its data is that of the buffer
// and of this call only. unix.ENOBUFS says that some were lost, errClosed that
// nobody is to wait any more.
func (s *socket) receive(each func(kind uint16, seq uint32, data []byte) error) error {
	var err error
	var n int
	var from unix.Sockaddr
	if s.raw.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), s.buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	}) != nil {
		return errClosed
	}
	return s.received(n, from, err, each)
}

// drain passes on what is there, and waits for nothing. unix.ENOBUFS says that
// some were lost, and that the others were passed on.
func (s *socket) drain(each func(kind uint16, seq uint32, data []byte) error) (err error) {
	cerr := s.raw.Control(func(fd uintptr) {
		for {
			n, from, rerr := unix.Recvfrom(int(fd), s.buf, 0)
			if rerr == unix.EAGAIN {
				return
			}
			if rerr == unix.EINTR {
				continue
			}
			if rerr = s.received(n, from, rerr, each); rerr != nil {
				err = rerr
			}
			if rerr != nil && rerr != unix.ENOBUFS {
				return
			}
		}
	})
	if cerr != nil {
		return errClosed
	}
	return err
}

// wake has a read that waits end, and every later one, with errClosed.
func (s *socket) wake() { _ = s.file.SetReadDeadline(time.Now()) }

func (s *socket) received(n int, from unix.Sockaddr, err error, each func(kind uint16, seq uint32, data []byte) error) error {
	if err != nil {
		return err
	}
	// What we read comes from the kernel, whose address is 0.
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil
	}
	return messages(s.buf[:n], each)
}

// messages passes on the messages of b, one behind the other at multiples of
// four bytes.
func messages(b []byte, each func(kind uint16, seq uint32, data []byte) error) error {
	for len(b) >= headerSize {
		length := binary.NativeEndian.Uint32(b)
		if length < headerSize || uint64(length) > uint64(len(b)) {
			return errors.New("the kernel's message is shorter than it says")
		}
		if err := each(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[headerSize:length]); err != nil {
			return err
		}
		b = b[min(len(b), int(length+3)&^3):]
	}
	return nil
}

// ask sends a request and passes on the answers, until the kernel says that
// there are no more. nfgen is struct nfgenmsg and what follows it.
func (s *socket) ask(kind uint16, flags uint16, nfgen []byte, each func(data []byte)) error {
	s.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(headerSize+len(nfgen)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = append(binary.NativeEndian.AppendUint32(b, 0), nfgen...)
	var serr error
	if err := s.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	}); err != nil {
		return err
	}
	if serr != nil {
		return serr
	}
	for done := false; !done; {
		err := s.receive(func(kind uint16, seq uint32, data []byte) error {
			switch {
			case seq != s.seq:
			case kind == unix.NLMSG_DONE:
				done = true
			case kind == unix.NLMSG_ERROR && len(data) >= 4:
				done = true
				if errno := -int32(binary.NativeEndian.Uint32(data)); errno != 0 {
					return unix.Errno(errno)
				}
			case each != nil:
				each(data)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Lost is how many messages were lost so far because they were not read in time.
func (s *socket) Lost() (lost uint32) {
	_ = s.raw.Control(func(fd uintptr) { lost, _ = kaudit.Lost(int(fd)) }) // closed: none more
	return lost
}

// nfgen is struct nfgenmsg of any family, about resource.
func nfgen(resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, resource)
}

func failed(what string, err error) error {
	if errors.Is(err, errClosed) {
		return err
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}
