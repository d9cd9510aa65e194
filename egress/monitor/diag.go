package monitor

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// diag asks a network namespace for its sockets (sock_diag(7)). It is for one
// goroutine at a time.
type diag struct {
	ns  *os.File
	fd  int // a NETLINK_SOCK_DIAG socket that was opened in the namespace
	seq uint32
	req [requestSize]byte
	buf [8192]byte // the largest part of an answer (NLMSG_GOODSIZE of linux/netlink.h)
}

// newDiag opens the socket in ns, which it goes on using.
func newDiag(ns *os.File) (*diag, error) {
	d := &diag{ns: ns}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("cannot ask for the sandbox's sockets: %w", err)
	}
	return d, nil
}

// open opens a socket; sockets stay in the namespace of the thread that made
// them.
func (d *diag) open() error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Setns(int(d.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		d.fd = -1
		return err
	}
	// The kernel answers at once, or not at all.
	timeout := unix.NsecToTimeval(scanBudget.Nanoseconds())
	_ = unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	return unix.Connect(d.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (d *diag) close() { unix.Close(d.fd) }

// abandon ends an answer that has not ended: while it goes on, the kernel
// refuses to begin another.
func (d *diag) abandon() error {
	d.close()
	return d.open()
}

// socket is what the kernel knows of one.
type socket struct {
	cookie     uint64 // names it for as long as the machine runs
	inode, uid uint32
}

// Layout of a request and an answer, from linux/inet_diag.h and netlink(7): a
// header of 16 bytes, then inet_diag_req_v2 or inet_diag_msg.
const (
	headerSize    = 16
	requestSize   = headerSize + 56
	sockDiagBy    = 20             // SOCK_DIAG_BY_FAMILY
	requestID     = headerSize + 8 // inet_diag_sockid
	requestSrc    = requestID + 4
	requestDst    = requestID + 20
	requestCookie = requestID + 40
	allStates     = ^uint32(0)
	anyCookie     = ^uint64(0)

	// Of an answer, behind its header.
	answerSrcPort = 4
	answerDstPort = 6
	answerSrc     = 8
	answerDst     = 24
	answerCookie  = 44
	answerUID     = 64
	answerInode   = 68
	answerSize    = 72
)

// maxSockets is how many are listed for one port. A program may have as many as
// it may have files open, and the monitor looks at each.
const maxSockets = 32

// errCrowd says that there are more.
var errCrowd = errors.New("too many sockets have one port")

// lookup asks for the one TCP socket whose local end is src and whose remote
// end is dst (sock_diag(7)).
func (d *diag) lookup(src, dst netip.AddrPort) (socket, error) {
	family := byte(unix.AF_INET6)
	if src.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	req := d.request(unix.NLM_F_REQUEST, family, unix.IPPROTO_TCP, src.Port())
	binary.BigEndian.PutUint16(req[requestID+2:], dst.Port())
	copy(req[requestSrc:], src.Addr().Unmap().AsSlice())
	copy(req[requestDst:], dst.Addr().Unmap().AsSlice())
	list, err := d.ask(req)
	if err != nil {
		return socket{}, err
	}
	return list[0].socket, nil
}

// datagrams returns the UDP sockets that may have sent a datagram from src to
// dst; to a name server, if dst is invalid: the fence has changed to which. The
// kernel compares the port alone. With errCrowd they are some of too many.
func (d *diag) datagrams(src, dst netip.AddrPort) (list []answered, err error) {
	crowded := false
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		found, err := d.ask(d.request(unix.NLM_F_REQUEST|unix.NLM_F_DUMP, family, unix.IPPROTO_UDP, src.Port()))
		if err != nil && err != errCrowd {
			return nil, err
		}
		crowded = crowded || err == errCrowd
		for _, s := range found {
			bound := s.src.Addr().IsUnspecified() || s.src.Addr() == src.Addr().Unmap()
			free := s.dst.Port() == 0
			if bound && (free || s.dst == dst || !dst.IsValid() && s.dst.Port() == 53) {
				list = append(list, s)
			}
		}
	}
	if crowded {
		return list, errCrowd
	}
	return list, nil
}

// answered is a socket with its ends.
type answered struct {
	socket
	src, dst netip.AddrPort // dst of port 0: it is not connected
}

// ask sends a request and returns its answers: one, or to a dump up to
// maxSockets, and errCrowd if there are more.
func (d *diag) ask(req []byte) (list []answered, err error) {
	if err := unix.Send(d.fd, req, 0); err != nil {
		return nil, err
	}
	host := binary.NativeEndian
	for {
		n, err := unix.Read(d.fd, d.buf[:])
		if err != nil {
			return nil, err
		}
		messages, err := syscall.ParseNetlinkMessage(d.buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			switch {
			case m.Header.Seq != d.seq: // of a question that was given up
				continue
			case m.Header.Type == unix.NLMSG_DONE:
				return list, nil
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, unix.Errno(-int32(host.Uint32(m.Data)))
			case len(m.Data) < answerSize:
				return nil, io.ErrUnexpectedEOF
			}
			if len(list) == maxSockets {
				return list, cmp.Or(d.abandon(), errCrowd)
			}
			list = append(list, parseSocket(m.Data))
			if m.Header.Flags&unix.NLM_F_MULTI == 0 {
				return list, nil
			}
		}
	}
}

// parseSocket reads an inet_diag_msg.
func parseSocket(b []byte) answered {
	host := binary.NativeEndian
	end := func(at, port int) netip.AddrPort {
		addr := netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
		if b[0] == unix.AF_INET {
			addr = netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[port:]))
	}
	return answered{
		socket: socket{cookie: host.Uint64(b[answerCookie:]), inode: host.Uint32(b[answerInode:]), uid: host.Uint32(b[answerUID:])},
		src:    end(answerSrc, answerSrcPort),
		dst:    end(answerDst, answerDstPort),
	}
}

// request begins one, about sockets whose local port is port.
func (d *diag) request(flags uint16, family, proto byte, port uint16) []byte {
	d.seq++
	req := d.req[:]
	clear(req)
	host := binary.NativeEndian
	host.PutUint32(req[0:], requestSize)
	host.PutUint16(req[4:], sockDiagBy)
	host.PutUint16(req[6:], flags)
	host.PutUint32(req[8:], d.seq)
	req[headerSize] = family
	req[headerSize+1] = proto
	host.PutUint32(req[headerSize+4:], allStates)
	binary.BigEndian.PutUint16(req[requestID:], port)
	host.PutUint64(req[requestCookie:], anyCookie)
	return req
}
